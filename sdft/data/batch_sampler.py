"""Assign samples to optimizer steps and images to samples, as a function of (seed, number)."""

from collections.abc import Hashable, Iterator

import torch
from torch.utils.data import Sampler

from sdft.rng import Draw, draw_permutation, make_generator

Epoch = tuple[list[int], list[range]]  # image indices in order; the range of them that each step takes


class SamplingPlan:
    """A step contains images of one bucket only. Each epoch visits every image once in a new order.

    With one bucket, steps may span epochs; with several, each epoch is split per bucket, so a bucket's last step may be
    smaller.
    """

    def __init__(self, seed: int, buckets: list[Hashable], samples_per_step: int):
        """`buckets` has one entry per image; a step takes `samples_per_step` samples over all ranks and micro-batches."""
        self.seed, self.num_images, self.samples_per_step = seed, len(buckets), samples_per_step
        members: dict[Hashable, list[int]] = {}
        for image, bucket in enumerate(buckets):
            members.setdefault(bucket, []).append(image)
        self.buckets = [torch.tensor(members[bucket]) for bucket in sorted(members)]
        self.cached_epoch: tuple[int, list[int], list[range]] = (-1, [], [])

    @property
    def steps_per_epoch(self) -> float:
        if len(self.buckets) == 1:
            return self.num_images / self.samples_per_step
        return sum(-(-len(bucket) // self.samples_per_step) for bucket in self.buckets)

    def count_steps(self, epochs: int) -> int:
        """Optimizer steps that visit every image `epochs` times."""
        return max(
            1,
            -(-epochs * self.num_images // self.samples_per_step)
            if len(self.buckets) == 1
            else epochs * int(self.steps_per_epoch),
        )

    def draw_epoch(self, epoch: int) -> Epoch:
        if self.cached_epoch[0] != epoch:
            draw = self.draw_one_bucket if len(self.buckets) == 1 else self.draw_several_buckets
            self.cached_epoch = (epoch, *draw(epoch))
        return self.cached_epoch[1:]

    def draw_one_bucket(self, epoch: int) -> Epoch:
        return draw_permutation(self.seed, epoch, self.num_images).tolist(), []

    def draw_several_buckets(self, epoch: int) -> Epoch:
        steps = []
        for bucket in self.buckets:
            shuffled = bucket[draw_permutation(self.seed, (epoch, int(bucket[0])), len(bucket))]
            steps += list(shuffled.split(self.samples_per_step))
        order = torch.randperm(len(steps), generator=make_generator(self.seed, Draw.STEP_ORDER, epoch)).tolist()
        images, ranges = [], []
        for step in [steps[i] for i in order]:
            ranges.append(range(len(images), len(images) + len(step)))
            images += step.tolist()
        return images, ranges

    def sample_numbers(self, step: int) -> list[int]:
        """Numbers of the samples in optimizer step `step` (from 0)."""
        if len(self.buckets) == 1:
            return list(range(step * self.samples_per_step, (step + 1) * self.samples_per_step))
        epoch, position = divmod(step, int(self.steps_per_epoch))
        return [epoch * self.num_images + n for n in self.draw_epoch(epoch)[1][position]]

    def image_index(self, sample: int) -> int:
        """Image index of sample number `sample`."""
        epoch, position = divmod(sample, self.num_images)
        return self.draw_epoch(epoch)[0][position]


class TrainingBatchSampler(Sampler):
    """Micro-batches of one rank for optimizer steps `first` to `last`, as lists of (sample number, sample weight).

    Micro-batches are assigned to ranks round-robin. An incomplete step is padded with zero-weight samples; sample weights make
    the average over micro-batches and ranks equal to the mean over the real samples. The length counts micro-batches from
    step 0, because Lightning compares a resumed run against it.
    """

    def __init__(
        self, plan: SamplingPlan, first: int, last: int, batch_size: int, accumulate: int, rank: int, world: int
    ):
        self.plan, self.first, self.last = plan, first, last
        self.batch_size, self.gradient_accumulation_steps, self.rank, self.world = batch_size, accumulate, rank, world

    def __len__(self):
        return self.last * self.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        for step in range(self.first, self.last):
            numbers = self.plan.sample_numbers(step)
            for micro_batch in range(self.gradient_accumulation_steps):
                start = (micro_batch * self.world + self.rank) * self.batch_size
                rank_numbers = numbers[start : start + self.batch_size]
                sample_weight = self.gradient_accumulation_steps * self.world * len(rank_numbers) / len(numbers)
                yield [(number, sample_weight) for number in rank_numbers] or [(numbers[0], 0.0)]
