"""Every picture exactly once an epoch, in any split over processes and micro-batches (properties)."""

import functools
import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft.data.batch_sampler import SamplingPlan, TrainingBatchSampler
from sdft.data.buckets import MAX_ASPECT_RATIO, choose_bucket, choose_bucket_step, list_buckets

GROUPS = st.lists(st.integers(0, 4), min_size=1, max_size=40)
SMALL = st.integers(1, 4)


@settings(max_examples=150, deadline=None)
@given(groups=GROUPS, samples_per_step=st.integers(1, 9), seed=st.integers(0, 3))
def test_every_picture_comes_exactly_once_an_epoch_and_a_step_has_one_size(
    groups, samples_per_step, seed
):  # pitfall 25
    plan = SamplingPlan(seed, groups, samples_per_step)
    for epoch in range(3):
        seen = [plan.image_index(n) for n in range(epoch * len(groups), (epoch + 1) * len(groups))]
        assert sorted(seen) == list(range(len(groups)))
    steps = [plan.sample_numbers(k) for k in range(plan.count_steps(2))]
    taken = functools.reduce(operator.iadd, steps, [])
    assert taken == list(range(len(taken))) and 0 <= len(taken) - 2 * len(groups) < samples_per_step
    for step in steps:
        assert len({groups[plan.image_index(n)] for n in step}) == 1 and 1 <= len(step) <= samples_per_step


@settings(max_examples=100, deadline=None)
@given(groups=GROUPS, batch=SMALL, accumulate=SMALL, world=SMALL, first=st.integers(0, 3))
def test_any_split_gives_every_step_the_same_samples_and_the_same_mean(groups, batch, accumulate, world, first):
    plan = SamplingPlan(0, groups, batch * accumulate * world)
    last = first + 3
    ranks = [list(TrainingBatchSampler(plan, first, last, batch, accumulate, rank, world)) for rank in range(world)]
    assert all(len(batches) == 3 * accumulate for batches in ranks)
    loss = torch.rand(100_000, generator=torch.Generator().manual_seed(0)).double()
    for place, step in enumerate(range(first, last)):
        numbers, means = plan.sample_numbers(step), []
        parts = [batches[place * accumulate + turn] for batches in ranks for turn in range(accumulate)]
        counted = [number for part in parts for number, share in part if share]
        assert sorted(counted) == numbers
        for part in parts:  # what the module, accumulation and processes make of it; pitfall 12
            means.append(torch.stack([loss[number] * share for number, share in part]).mean())
        assert torch.stack(means).mean().item() == pytest.approx(loss[numbers].mean().item())


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(1, 6000), st.integers(1, 6000)),
    resolution=st.sampled_from([8, 32, 256, 512, 768, 1024]),
    upscale=st.sampled_from([0.0, 1.0, 2.0]),
)
def test_a_bucket_has_the_units_the_area_and_the_shape(size, resolution, upscale):
    unit = choose_bucket_step(resolution, 8)
    width, height = choose_bucket(size, resolution, unit, upscale)
    assert width % unit == height % unit == 0 and width * height <= resolution**2
    if upscale and (width, height) != (unit, unit):
        assert width * height <= size[0] * size[1] * upscale**2
    wanted, got = max(1 / MAX_ASPECT_RATIO, min(MAX_ASPECT_RATIO, size[0] / size[1])), width / height
    nearest = min(list_buckets(resolution, unit), key=lambda s: abs(s[0] / s[1] - wanted))
    if not upscale:
        assert (
            max(got / wanted, wanted / got)
            <= max(nearest[0] / nearest[1] / wanted, wanted / (nearest[0] / nearest[1])) + 0.35
        )


def test_the_shapes_of_512_are_those_of_the_field():
    assert {(512, 512), (448, 576), (640, 384), (1024, 256), (320, 704)} <= set(list_buckets(512, 64))
    assert choose_bucket((3000, 2000), 512, 64, 1.0) == (640, 384) and choose_bucket((300, 300), 512, 64, 1.0) == (
        256,
        256,
    )


def test_small_resolutions_have_small_units():
    assert [choose_bucket_step(resolution, 8) for resolution in (32, 128, 512, 1024)] == [8, 16, 64, 64]


def test_one_size_crosses_the_epochs_without_short_steps():
    plan = SamplingPlan(0, ["square"] * 10, 4)
    assert [len(plan.sample_numbers(k)) for k in range(10)] == [4] * 10 and plan.count_steps(2) == 5
