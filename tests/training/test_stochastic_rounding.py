"""Stochastic rounding is unbiased, keeps what bf16 represents, and depends on its generator alone."""

import torch

from sdft.training.stochastic_rounding import round_stochastically_

NUM_DRAWS = 10**5


def round_copy(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return round_stochastically_(values.clone(), generator)


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_mean_of_many_draws_is_the_value():
    for value in (1.001, -3.14159, 6.1e-5, 1e30, 2.5e-40):  # the last is subnormal
        rounded = round_copy(torch.full((NUM_DRAWS,), value), make_generator()).double()
        below, above = rounded.min(), rounded.max()
        assert below < torch.tensor(value) < above and len(rounded.unique()) == 2
        probability = (value - below) / (above - below)
        deviation = (probability * (1 - probability) / NUM_DRAWS).sqrt() * (above - below)
        assert abs(rounded.mean() - value) < 4 * deviation, value


def test_numbers_that_bf16_represents_infinities_and_nan_do_not_change():
    values = torch.randn(1000, generator=make_generator()).bfloat16().float()
    values = torch.cat([values, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.finfo(torch.bfloat16).max])])
    for seed in range(20):
        rounded = round_copy(values, make_generator(seed))
        assert torch.equal(rounded.view(torch.int32), values.view(torch.int32))
    patterns = torch.tensor([0x7FFFFFFF, 0x7FC00000, 0x7F800001, -1, -(2**22)], dtype=torch.int32)
    for seed in range(20):
        assert round_copy(patterns.view(torch.float32), make_generator(seed)).isnan().all()


def test_results_are_bf16_neighbours_of_the_values_and_symmetric_in_sign():
    values = torch.randn(1000, generator=make_generator())
    rounded = round_copy(values, make_generator(1))
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert ((rounded - values).abs() < values.abs() / 128).all()
    assert torch.equal(round_copy(-values, make_generator(1)), -rounded)


def test_equal_generators_draw_equal_numbers_whatever_the_global_state():
    values = torch.randn(1000)
    rounded = [round_copy(values, make_generator(seed)) for seed in (3, 3, 4)]
    assert torch.equal(rounded[0], rounded[1]) and not torch.equal(rounded[0], rounded[2])
