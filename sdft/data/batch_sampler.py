"""Assign samples to optimizer steps and images to samples, as a function of (seed, number)."""

from array import array
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from sdft.rng import Draw, draw_permutation, make_generator

Epoch = tuple[Sequence[int], list[range]]  # image indices in order; the range of them that each step takes
StepSizes = list[
    tuple[int, int]
]  # first step and samples per step of each part of a run; a resumed run may change them


class SamplingPlan:
    """A step contains images of one bucket only. Each epoch visits every image once in a new order.

    With one bucket, steps may span epochs; with several, each epoch is split per bucket, so a bucket's last step may be
    smaller. A change of the samples per step continues with the next sample: the rest of an epoch is split anew.
    """

    def __init__(self, seed: int, buckets: list[Hashable], samples_per_step: int | StepSizes):
        """`buckets` has one entry per image; a step takes `samples_per_step` samples over all ranks and micro-batches."""
        self.seed, self.num_images = seed, len(buckets)
        self.step_sizes = [(0, samples_per_step)] if isinstance(samples_per_step, int) else samples_per_step
        members: dict[Hashable, array] = {}
        for image, bucket in enumerate(buckets):
            members.setdefault(bucket, array("q")).append(image)
        self.buckets = [torch.from_numpy(np.array(members[bucket])) for bucket in sorted(members)]
        self.samples_per_step = self.step_sizes[0][1]
        self.first_step = self.first_sample = self.first_epoch = (
            0  # from here, every step and epoch has the current size
        )
        self.split_epoch: Epoch = ([], [])  # the epoch before the first, which began with another size
        self.cached_epoch: tuple[int, list[int], list[range]] = (-1, [], [])
        for step, count in self.step_sizes[1:]:
            self.change_samples_per_step(step, count)

    def change_samples_per_step(self, step: int, count: int) -> None:
        """Take `count` samples per step from `step` on; all earlier changes are at earlier steps."""
        if len(self.buckets) == 1:
            self.first_sample, self.first_step = self.sample_numbers(step)[0], step
        else:
            epoch, position = self.locate_step(step)
            images, ranges = self.draw_epoch(epoch)
            self.samples_per_step = count
            rest_images, rest = self.draw_several_buckets(epoch, images[: ranges[position].start])
            self.split_epoch = (rest_images, [*ranges[:position], *rest]) if position else ([], [])
            self.first_epoch = epoch + bool(position)
            self.first_step = step - position + len(self.split_epoch[1])
        self.samples_per_step, self.cached_epoch = count, (-1, [], [])

    @property
    def steps_per_epoch(self) -> float:
        if len(self.buckets) == 1:
            return self.num_images / self.samples_per_step
        return sum(-(-len(bucket) // self.samples_per_step) for bucket in self.buckets)

    def count_steps(self, epochs: int) -> int:
        """Optimizer steps that visit every image `epochs` times."""
        if len(self.buckets) == 1:
            return max(1, self.first_step - (self.first_sample - epochs * self.num_images) // self.samples_per_step)
        return max(1, self.first_step + (epochs - self.first_epoch) * int(self.steps_per_epoch))

    def count_epochs(self, steps: int) -> float:
        """Epochs that `steps` optimizer steps visit."""
        if len(self.buckets) == 1:
            return (self.first_sample + (steps - self.first_step) * self.samples_per_step) / self.num_images
        return self.first_epoch + (steps - self.first_step) / self.steps_per_epoch

    def draw_epoch(self, epoch: int) -> Epoch:
        if self.split_epoch[0] and epoch == self.first_epoch - 1:
            return self.split_epoch
        if self.cached_epoch[0] != epoch:
            draw = self.draw_one_bucket if len(self.buckets) == 1 else self.draw_several_buckets
            self.cached_epoch = (epoch, *draw(epoch))
        return self.cached_epoch[1:]

    def draw_one_bucket(self, epoch: int) -> Epoch:
        return array("q", draw_permutation(self.seed, epoch, self.num_images).numpy().tobytes()), []

    def draw_several_buckets(self, epoch: int, visited: list[int] | None = None) -> Epoch:
        """The order of the images, of which the first ones are `visited`, and the ranges of the others."""
        images, ranges, steps = list(visited or []), [], []
        for bucket in self.buckets:
            shuffled = bucket[draw_permutation(self.seed, (epoch, int(bucket[0])), len(bucket))]
            rest = shuffled[~torch.isin(shuffled, torch.tensor(images))] if images else shuffled
            steps += [step for step in rest.split(self.samples_per_step) if len(step)]
        order = torch.randperm(len(steps), generator=make_generator(self.seed, Draw.STEP_ORDER, epoch)).tolist()
        for step in [steps[i] for i in order]:
            ranges.append(range(len(images), len(images) + len(step)))
            images += step.tolist()
        return array("q", images), ranges

    def locate_step(self, step: int) -> tuple[int, int]:
        """Epoch of a step, and its position in that epoch, with several buckets."""
        if step < self.first_step:
            return self.first_epoch - 1, step - self.first_step + len(self.split_epoch[1])
        epoch, position = divmod(step - self.first_step, int(self.steps_per_epoch))
        return self.first_epoch + epoch, position

    def sample_numbers(self, step: int) -> list[int]:
        """Numbers of the samples in optimizer step `step` (from 0; after a change of the step size, from its epoch on)."""
        if len(self.buckets) == 1:
            start = self.first_sample + (step - self.first_step) * self.samples_per_step
            return list(range(start, start + self.samples_per_step))
        epoch, position = self.locate_step(step)
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
