"""When the device's memory runs out in the middle of a step, the weights of the last whole one are saved first."""

import traceback
from pathlib import Path

from lightning import Callback

from sdft.training.oom_advice import is_out_of_memory

SAFE_FRAMES = (
    "closure",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_end",
)  # frames in which no weight changes


class OomCheckpoint(Callback):
    """Of one process: several would have to save together, and the others wait for the one that failed."""

    def __init__(self, folder: Path):
        self.folder, self.first, self.saving = folder, 0, False

    def on_train_start(self, trainer, module):
        self.first = trainer.global_step

    def on_exception(self, trainer, module, exception):
        if not is_out_of_memory(exception) or trainer.world_size > 1 or trainer.global_step == self.first:
            return
        frames = {frame.name for frame in traceback.extract_tb(exception.__traceback__)}
        if not frames & set(SAFE_FRAMES):
            return  # in the optimizer itself, which may have changed some weights already
        for parameter in module.parameters():
            parameter.grad = None
        self.saving = True
        trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")

    def on_save_checkpoint(self, trainer, module, checkpoint):
        """Micro-batches of a step that was not finished are none: the counts are those of the end of the last one."""
        if not self.saving or (steps := trainer.global_step) == 0:
            return
        loop = checkpoint["loops"]["fit_loop"]
        batches = steps * trainer.accumulate_grad_batches
        for counts in ("total", "current"):
            done = loop["epoch_loop.batch_progress"][counts]
            done |= {"ready": batches, "started": batches, "processed": batches, "completed": batches - 1}
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = steps - 1
