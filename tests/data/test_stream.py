"""What sample n is depends on (seed, n) alone."""

import functools
import operator

import pytest
import torch

from sdft.data.digits import Digits
from sdft.data.stream import Numbers, Stream


@pytest.fixture
def samples(tiny):
    def build(**options):
        return Stream(resolution=32, **options).samples(Digits(per_digit=2), tiny())

    return build


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_a_sample_is_a_function_of_its_number(samples):
    first, again = samples(crop="random", flip=True, dropout=0.5), samples(crop="random", flip=True, dropout=0.5)
    for number in (13, 2, 40):
        torch.manual_seed(number)
        assert same(first[number], again[number])
    assert not torch.equal(first[3]["noise"], first[4]["noise"])
    assert not torch.equal(first[3]["noise"], samples(seed=1)[3]["noise"])


def test_every_image_comes_once_an_epoch_in_another_order(samples):
    stream = samples()
    epochs = [[int(stream[n]["index"]) for n in range(start, start + 10)] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_an_image_meets_new_noise_every_epoch(samples):
    stream = samples()
    noise = {int(s["index"]): s["noise"] for s in (stream[n] for n in range(10))}
    assert not any(torch.equal(noise[int(s["index"])], s["noise"]) for s in (stream[n] for n in range(10, 20)))


def test_draws_have_their_distributions(samples):
    stream = samples(dropout=0.3)
    drawn = [stream[n] for n in range(600)]
    timesteps = torch.stack([s["timestep"] for s in drawn]).float()
    assert timesteps.min() >= 0 and timesteps.max() <= 999
    assert timesteps.mean() == pytest.approx(499.5, abs=40)
    assert torch.stack([s["noise"] for s in drawn]).std() == pytest.approx(1, abs=0.02)
    dropped = sum(torch.equal(s["ids"], stream.empty) for s in drawn) / 600
    assert dropped == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize(("world", "batch"), [(1, 4), (2, 2), (4, 1)])
def test_any_split_over_processes_gives_the_same_samples_to_each_step(world, batch):
    ranks = [list(Numbers(8, 24, batch, rank, world)) for rank in range(world)]
    steps = [sorted(functools.reduce(operator.iadd, step, [])) for step in zip(*ranks, strict=True)]
    assert steps == [list(range(s, s + 4)) for s in range(8, 24, 4)]


def test_timesteps_keep_to_their_range_and_distribution(samples):
    low = [int(samples(timestep_range=[0.0, 0.25]).timestep(n)) for n in range(400)]
    assert min(low) >= 0 and 200 < max(low) < 250
    middle = torch.tensor([int(samples(timestep_distribution="logit_normal").timestep(n)) for n in range(400)]) / 1000
    assert (middle - 0.5).abs().mean() < 0.21 < 0.25  # uniform: 0.25
    for options in ({"timestep_range": [0.5, 0.5]}, {"timestep_distribution": "cubic"}, {"pyramid_noise": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            samples(**options)


def test_pyramid_noise_is_coarse_and_of_unit_variance(samples):
    plain, pyramid = (torch.stack([samples(pyramid_noise=d)[n]["noise"] for n in range(60)]) for d in (0.0, 0.6))
    assert pyramid.std().item() == pytest.approx(1, abs=0.01)
    means = [noise.mean((2, 3)).std().item() for noise in (plain, pyramid)]
    assert means[1] > 2 * means[0]


def test_bad_words_are_refused():
    with pytest.raises(ValueError, match="crop=left: choose one of center, random"):
        Stream(32, crop="left")
    with pytest.raises(ValueError, match="caption_dropout=2"):
        Stream(32, dropout=2)
    with pytest.raises(ValueError, match="batch_size=0"):
        Stream(32, batch_size=0)
