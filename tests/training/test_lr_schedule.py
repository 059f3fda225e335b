"""Learning-rate schedules: warm-up, shapes and final factors."""

import pytest
import torch
from diffusers.optimization import get_scheduler

from sdft.data.batch_sampler import SamplingPlan
from sdft.training.lr_schedule import SCHEDULE_SHAPES, LRSchedule
from sdft.training.settings import TrainingSettings


def compute_factors(steps=100, **options):
    schedule = LRSchedule(**options)
    return [schedule.compute_factor(step, steps) for step in range(steps)]


@pytest.mark.parametrize("shape", SCHEDULE_SHAPES[1:])
def test_the_last_step_is_above_the_final_factor_which_the_next_would_have(shape):
    schedule = LRSchedule(shape=shape, warmup=10, min_lr_ratio=0.1)
    assert schedule.compute_factor(99, 100) > 0.1
    assert schedule.compute_factor(100, 100) == pytest.approx(0.1)


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("shape", SCHEDULE_SHAPES)
def test_every_step_has_the_factor_of_diffusers(shape, warmup):
    options = {"cosine_with_restarts": {"num_cycles": 3}, "polynomial": {"power": 2.0}}.get(shape, {})
    min_lr_ratio = {"min_lr_ratio": 1e-7} if shape == "polynomial" else {}  # diffusers' lr_end
    name = "constant_with_warmup" if shape == "constant" else shape
    for steps in (8, 31, 90):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps, **options)
        expected = []
        for _ in range(steps):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        factors = compute_factors(steps, shape=shape, warmup=warmup, **options, **min_lr_ratio)
        assert factors == pytest.approx(expected, rel=1e-12, abs=1e-15)
        assert factors[-1] > 0


@pytest.mark.parametrize("shape", SCHEDULE_SHAPES)
def test_warm_up_rises_to_the_full_learning_rate(shape):
    rates = compute_factors(shape=shape, warmup=4)
    assert rates[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])


def test_warm_up_below_one_is_a_fraction_of_the_run():
    assert LRSchedule("constant", warmup=0.1).count_warmup_steps(200) == 20


def test_cosine_is_half_in_the_middle():
    assert compute_factors(100, shape="cosine")[50] == pytest.approx(0.5)


def test_polynomial_is_a_power_of_the_remaining_fraction():
    assert compute_factors(100, shape="polynomial", power=2.0, min_lr_ratio=0.2)[50] == pytest.approx(0.2 + 0.8 * 0.25)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("world_size", [1, 2])
def test_cosine_ends_at_its_final_factor_for_any_accumulation_and_world_size(accumulate, world_size):  # pitfall 13
    settings = TrainingSettings(epochs=3, batch_size=2, gradient_accumulation_steps=accumulate)
    steps = settings.count_steps(SamplingPlan(0, [0] * 50, settings.samples_per_step(world_size)))
    schedule = LRSchedule("cosine", warmup=0.1, min_lr_ratio=0.05)
    assert 0.05 < schedule.compute_factor(steps - 1, steps) < 0.08
    assert schedule.compute_factor(steps, steps) == pytest.approx(0.05)


def test_restarts_return_to_the_full_learning_rate():
    rates = compute_factors(90, shape="cosine_with_restarts", num_cycles=3)
    assert [rates[0], rates[30], rates[60]] == pytest.approx([1, 1, 1]) and rates[29] < 0.01


def test_the_optimizer_follows_the_schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = LRSchedule("linear")(optimizer, 3)
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([2, 4 / 3, 2 / 3])


def test_invalid_options_are_rejected():
    with pytest.raises(ValueError, match=r"schedule.shape=round: .*constant, linear"):
        LRSchedule("round")
    with pytest.raises(ValueError, match="warmup=30: .*20 steps"):
        LRSchedule("constant", warmup=30)(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), 20)
    for options, message in (
        ({"power": 2.0}, "schedule.power=2.0"),
        ({"num_cycles": 0}, "num_cycles=0"),
        ({"min_lr_ratio": 2.0}, "min_lr_ratio=2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            LRSchedule("cosine", **options)
