"""Learning-rate schedules: linear warm-up, then one of the usual shapes, as factors of the learning rate."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LambdaLR

SCHEDULE_SHAPES = ("constant", "linear", "polynomial", "cosine", "cosine_with_restarts")


@dataclass
class LRSchedule:
    """`warmup` in optimizer steps, or as a fraction of the run when below 1; `min_lr_ratio` is where decays end.

    `num_cycles` applies to cosine_with_restarts, `power` to polynomial:
    min_lr_ratio + (1 - min_lr_ratio) * (1 - progress) ** power.
    """

    shape: str
    warmup: float = 0
    num_cycles: int = 1
    min_lr_ratio: float = 0.0
    power: float = 1.0

    def __post_init__(self):
        if self.shape not in SCHEDULE_SHAPES:
            raise ValueError(f"schedule.shape={self.shape}: choose one of {', '.join(SCHEDULE_SHAPES)}")
        if self.shape != "polynomial" and self.power != 1:
            raise ValueError(f"schedule.power={self.power}: supported by schedule=polynomial only")
        if self.num_cycles < 1 or self.power <= 0:
            raise ValueError(
                f"schedule.num_cycles={self.num_cycles} power={self.power}: choose 1 or more, and a power above 0"
            )
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(f"schedule.min_lr_ratio={self.min_lr_ratio}: choose a factor from 0 to 1")
        if self.warmup < 0:
            raise ValueError(f"warmup={self.warmup}: choose 0 or more steps, or a fraction of the run below 1")

    def count_warmup_steps(self, steps: int) -> int:
        return round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)

    def check(self, steps: int) -> None:
        if self.count_warmup_steps(steps) >= steps:
            raise ValueError(f"warmup={self.warmup}: choose fewer than the run's {steps} steps")

    def compute_factor(self, step: int, steps: int) -> float:
        """Learning-rate factor of optimizer step `step` (from 0) of `steps`, as in diffusers' `get_scheduler`.

        Warm-up starts at 0. Decaying shapes would reach `min_lr_ratio` at the step after the last one.
        """
        warmup = self.count_warmup_steps(steps)
        if step < warmup:
            return step / warmup
        if self.shape == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / (steps - warmup))
        if self.shape in ("linear", "polynomial"):
            return self.min_lr_ratio + (1 - self.min_lr_ratio) * (1 - progress) ** self.power
        cycle_progress = progress if self.shape == "cosine" or progress == 1 else progress * self.num_cycles % 1
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * (1 + math.cos(math.pi * cycle_progress)) / 2

    def __call__(self, optimizer, steps: int) -> "LambdaLR":
        from torch.optim.lr_scheduler import LambdaLR

        self.check(steps)
        return LambdaLR(optimizer, lambda step: self.compute_factor(step, steps))
