"""Property tests: each image occurs once per epoch, for any split over ranks and micro-batches."""

import functools
import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft.data.batch_sampler import SamplingPlan, TrainingBatchSampler
from sdft.data.buckets import MAX_ASPECT_RATIO, choose_bucket, choose_bucket_step, list_buckets

BUCKETS = st.lists(st.integers(0, 4), min_size=1, max_size=40)
SMALL = st.integers(1, 4)


@settings(max_examples=150, deadline=None)
@given(buckets=BUCKETS, samples_per_step=st.integers(1, 9), seed=st.integers(0, 3))
def test_every_image_occurs_once_per_epoch_and_steps_do_not_mix_buckets(buckets, samples_per_step, seed):  # pitfall 25
    plan = SamplingPlan(seed, buckets, samples_per_step)
    for epoch in range(3):
        indices = [plan.image_index(n) for n in range(epoch * len(buckets), (epoch + 1) * len(buckets))]
        assert sorted(indices) == list(range(len(buckets)))
    steps = [plan.sample_numbers(k) for k in range(plan.count_steps(2))]
    numbers = functools.reduce(operator.iadd, steps, [])
    assert numbers == list(range(len(numbers))) and 0 <= len(numbers) - 2 * len(buckets) < samples_per_step
    for step in steps:
        assert len({buckets[plan.image_index(n)] for n in step}) == 1 and 1 <= len(step) <= samples_per_step


@settings(max_examples=100, deadline=None)
@given(buckets=BUCKETS, batch=SMALL, accumulate=SMALL, world=SMALL, first=st.integers(0, 3))
def test_any_split_gives_each_step_the_same_samples_and_the_same_mean_loss(buckets, batch, accumulate, world, first):
    plan = SamplingPlan(0, buckets, batch * accumulate * world)
    last = first + 3
    ranks = [list(TrainingBatchSampler(plan, first, last, batch, accumulate, rank, world)) for rank in range(world)]
    assert all(len(batches) == 3 * accumulate for batches in ranks)
    loss = torch.rand(100_000, generator=torch.Generator().manual_seed(0)).double()
    for position, step in enumerate(range(first, last)):
        numbers, means = plan.sample_numbers(step), []
        micro_batches = [batches[position * accumulate + k] for batches in ranks for k in range(accumulate)]
        weighted = [number for micro_batch in micro_batches for number, weight in micro_batch if weight]
        assert sorted(weighted) == numbers
        for micro_batch in micro_batches:  # averaged by the module, accumulation and ranks; pitfall 12
            means.append(torch.stack([loss[number] * weight for number, weight in micro_batch]).mean())
        assert torch.stack(means).mean().item() == pytest.approx(loss[numbers].mean().item())


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(1, 6000), st.integers(1, 6000)),
    resolution=st.sampled_from([8, 32, 256, 512, 768, 1024]),
    max_upscale=st.sampled_from([0.0, 1.0, 2.0]),
)
def test_bucket_respects_unit_area_and_aspect_ratio(size, resolution, max_upscale):
    unit = choose_bucket_step(resolution, 8)
    width, height = choose_bucket(size, resolution, unit, max_upscale)
    assert width % unit == height % unit == 0 and width * height <= resolution**2
    if max_upscale and (width, height) != (unit, unit):
        assert width * height <= size[0] * size[1] * max_upscale**2
    expected, ratio = max(1 / MAX_ASPECT_RATIO, min(MAX_ASPECT_RATIO, size[0] / size[1])), width / height
    nearest = min(list_buckets(resolution, unit), key=lambda s: abs(s[0] / s[1] - expected))
    if not max_upscale:
        assert (
            max(ratio / expected, expected / ratio)
            <= max(nearest[0] / nearest[1] / expected, expected / (nearest[0] / nearest[1])) + 0.35
        )


def test_buckets_of_512_include_the_common_ones():
    assert {(512, 512), (448, 576), (640, 384), (1024, 256), (320, 704)} <= set(list_buckets(512, 64))
    assert choose_bucket((3000, 2000), 512, 64, 1.0) == (640, 384)
    assert choose_bucket((300, 300), 512, 64, 1.0) == (256, 256)


def test_small_resolutions_have_small_bucket_steps():
    assert [choose_bucket_step(resolution, 8) for resolution in (32, 128, 512, 1024)] == [8, 16, 64, 64]


def test_steps_of_one_bucket_span_epochs_and_are_complete():
    plan = SamplingPlan(0, ["square"] * 10, 4)
    assert [len(plan.sample_numbers(k)) for k in range(10)] == [4] * 10 and plan.count_steps(2) == 5


@settings(max_examples=150, deadline=None)
@given(
    buckets=BUCKETS,
    sizes=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 9)), min_size=2, max_size=4),
    seed=st.integers(0, 3),
)
def test_a_change_of_the_samples_per_step_continues_with_the_next_sample(buckets, sizes, seed):
    numbers, step, step_sizes = [], 0, []
    for num_steps, samples_per_step in sizes:
        step_sizes = [*step_sizes, (step, samples_per_step)]
        plan = SamplingPlan(seed, buckets, step_sizes)
        last = max(step + num_steps, plan.count_steps(3)) if len(step_sizes) == len(sizes) else step + num_steps
        for current in range(step, last):
            taken = plan.sample_numbers(current)
            assert len({buckets[plan.image_index(n)] for n in taken}) == 1 and 1 <= len(taken) <= samples_per_step
            numbers += taken
        step = last
    assert numbers == list(range(len(numbers)))
    assert plan.count_epochs(last) == pytest.approx(len(numbers) / len(buckets), abs=1)
    for epoch in range(3):  # also the one during which the size changed
        images = [plan.image_index(n) for n in range(epoch * len(buckets), (epoch + 1) * len(buckets))]
        if (epoch + 1) * len(buckets) > sum(n * size for n, size in sizes[:-1]):
            assert sorted(images) == list(range(len(buckets)))


def test_the_rest_of_an_epoch_is_counted_in_samples():
    plan = SamplingPlan(0, ["square"] * 40, [(0, 4), (15, 8)])
    assert plan.sample_numbers(15)[0] == 60 and plan.count_steps(3) == 15 + 8 and plan.count_epochs(15) == 1.5
    plan = SamplingPlan(0, ["wide"] * 20 + ["tall"] * 20, [(0, 4), (15, 8)])
    assert plan.sample_numbers(15)[0] == 60 and plan.count_steps(2) == 15 + 3
