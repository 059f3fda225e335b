"""Periodic checkpoints, every N steps or minutes, written while training continues."""

import time
from pathlib import Path

from lightning.pytorch.callbacks import Checkpoint

import sdft.distributed as processes
from sdft.runs.checkpoint_file import format_checkpoint_name
from sdft.runs.metrics_csv import MetricsCsv


class PeriodicCheckpoint(Checkpoint):
    """Save every `seconds` if nonzero, else every `every` steps; store the number of metrics rows with each checkpoint.

    Lightning calls `Checkpoint` callbacks last.
    """

    def __init__(self, every: int, seconds: float):
        self.every, self.seconds = every, seconds

    def setup(self, trainer, module, stage):
        self.folder = Path(trainer.default_root_dir) / "checkpoints"
        self.metrics = next(logger for logger in trainer.loggers if isinstance(logger, MetricsCsv))

    @property
    def state_key(self) -> str:
        return "checkpoint"

    def on_train_start(self, trainer, module):
        self.last_step, self.last_time = trainer.global_step, time.monotonic()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        step = trainer.global_step
        if (batch_idx + 1) % trainer.accumulate_grad_batches or step == self.last_step or not self.is_due(step):
            return
        self.last_step, self.last_time = step, time.monotonic()
        trainer.save_checkpoint(self.folder / format_checkpoint_name(step))

    def is_due(self, step: int) -> bool:
        """Whether to save at this step; all ranks agree."""
        if self.seconds:
            return bool(processes.all_reduce_max(int(time.monotonic() - self.last_time >= self.seconds)))
        return bool(self.every) and step % self.every == 0

    def on_exception(self, trainer, module, exception):
        trainer.strategy.checkpoint_io.wait()

    def state_dict(self):
        return {"rows": len(self.metrics.rows)}

    def load_state_dict(self, state):
        self.metrics.truncate(state["rows"])
