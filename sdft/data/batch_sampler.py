"""Which samples each optimizer step takes, and which picture each sample shows: a function of (seed, number)."""

from collections.abc import Hashable, Iterator

import torch
from torch.utils.data import Sampler

from sdft.rng import draw_permutation, make_generator


class SamplingPlan:
    """Pictures of one group (a bucket: a size in pixels) make up a step together.

    Every picture comes once an epoch, in an order of its own. One group is an endless row of samples whose steps cross the
    epochs; of several, each epoch's row is cut into steps group by group, so the last step of a group may be short.
    """

    def __init__(self, seed: int, groups: list[Hashable], samples_per_step: int):
        """`groups` names the group of every picture; a step takes `samples_per_step` samples, of all processes and micro-batches."""
        self.seed, self.count, self.samples_per_step = seed, len(groups), samples_per_step
        members: dict[Hashable, list[int]] = {}
        for picture, group in enumerate(groups):
            members.setdefault(group, []).append(picture)
        self.groups = [torch.tensor(members[group]) for group in sorted(members)]
        self.memory: tuple[int, list[int], list[range]] = (-1, [], [])

    @property
    def steps_per_epoch(self) -> float:
        if len(self.groups) == 1:
            return self.count / self.samples_per_step
        return sum(-(-len(group) // self.samples_per_step) for group in self.groups)

    def count_steps(self, epochs: int) -> int:
        """Optimizer steps that show every picture `epochs` times."""
        return max(
            1,
            -(-epochs * self.count // self.samples_per_step)
            if len(self.groups) == 1
            else epochs * int(self.steps_per_epoch),
        )

    def epoch(self, number: int) -> tuple[list[int], list[range]]:
        """The pictures of one epoch in order, and the places in it that each step takes."""
        if self.memory[0] != number:
            self.memory = (number, *(self.single(number) if len(self.groups) == 1 else self.several(number)))
        return self.memory[1:]

    def single(self, number: int) -> tuple[list[int], list[range]]:
        return draw_permutation(self.seed, number, self.count).tolist(), []

    def several(self, number: int) -> tuple[list[int], list[range]]:
        runs = []
        for group in self.groups:
            shuffled = group[draw_permutation(self.seed, (number, int(group[0])), len(group))]
            runs += list(shuffled.split(self.samples_per_step))
        runs = [
            runs[i] for i in torch.randperm(len(runs), generator=make_generator(self.seed, "runs", number)).tolist()
        ]
        row, places = [], []
        for run in runs:
            places.append(range(len(row), len(row) + len(run)))
            row += run.tolist()
        return row, places

    def sample_numbers(self, number: int) -> list[int]:
        """The numbers of the samples that optimizer step `number` (from 0) takes."""
        if len(self.groups) == 1:
            return list(range(number * self.samples_per_step, (number + 1) * self.samples_per_step))
        epoch, place = divmod(number, int(self.steps_per_epoch))
        return [epoch * self.count + n for n in self.epoch(epoch)[1][place]]

    def image_index(self, sample: int) -> int:
        """The picture that sample number `sample` shows."""
        epoch, place = divmod(sample, self.count)
        return self.epoch(epoch)[0][place]


class TrainingBatchSampler(Sampler):
    """The samples of one process from optimizer step `first` to `last`: lists of (number, share), a micro-batch each.

    Micro-batches are dealt to the processes in turn. A short step leaves some of them short or with a sample that counts
    nothing; shares make the mean of means that accumulation and processes take the mean over the step's own samples.
    Its length is that of the whole run, which is what Lightning counts a resumed run against.
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
            for turn in range(self.gradient_accumulation_steps):
                start = (turn * self.world + self.rank) * self.batch_size
                mine = numbers[start : start + self.batch_size]
                share = self.gradient_accumulation_steps * self.world * len(mine) / len(numbers)
                yield [(number, share) for number in mine] or [(numbers[0], 0.0)]
