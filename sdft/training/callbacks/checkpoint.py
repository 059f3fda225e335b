"""Checkpoints every so many steps or minutes; training goes on while they are written."""

import time
from pathlib import Path

from lightning.pytorch.callbacks import Checkpoint

import sdft.distributed as processes
from sdft.runs.checkpoint_file import format_checkpoint_name
from sdft.runs.metrics_csv import MetricsCsv


class PeriodicCheckpoint(Checkpoint):
    """Every `every` steps, or every `seconds`, which win; with each, how many rows of `metrics` there were.

    Lightning calls these callbacks last.
    """

    def __init__(self, folder: Path, every: int, seconds: float, metrics: MetricsCsv):
        self.folder, self.every, self.seconds, self.metrics = folder, every, seconds, metrics

    def on_train_start(self, trainer, module):
        self.saved, self.since = trainer.global_step, time.monotonic()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        step = trainer.global_step
        if (batch_idx + 1) % trainer.accumulate_grad_batches or step == self.saved or not self.due(step):
            return
        self.saved, self.since = step, time.monotonic()
        trainer.save_checkpoint(self.folder / format_checkpoint_name(step))

    def due(self, step: int) -> bool:
        """In all processes alike."""
        if self.seconds:
            return bool(processes.all_reduce_max(int(time.monotonic() - self.since >= self.seconds)))
        return bool(self.every) and step % self.every == 0

    def on_exception(self, trainer, module, exception):
        trainer.strategy.checkpoint_io.wait()

    def state_dict(self):
        return {"rows": len(self.metrics.rows)}

    def load_state_dict(self, state):
        self.metrics.truncate(state["rows"])
