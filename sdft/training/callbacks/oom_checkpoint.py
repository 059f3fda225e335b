"""Save a checkpoint of the last complete step when the device runs out of memory."""

import traceback

from sdft.training.callbacks.base import RunCallback
from sdft.training.oom_advice import is_out_of_memory

SAFE_FRAMES = (
    "closure",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_end",
)  # frames in which no weight changes


class OomCheckpoint(RunCallback):
    """Single process only: saving is collective, and the other ranks wait for the failed one.

    Micro-batches of the incomplete step are left out by `TrainingMetrics` when saving and by `DataPosition` when resuming.
    """

    def __init__(self):
        self.first_step = 0

    def on_train_start(self, trainer, module):
        self.first_step = trainer.global_step

    def on_exception(self, trainer, module, exception):
        if not is_out_of_memory(exception) or trainer.world_size > 1 or trainer.global_step == self.first_step:
            return
        frames = {frame.name for frame in traceback.extract_tb(exception.__traceback__)}
        if not frames & set(SAFE_FRAMES):
            return  # inside the optimizer step, which may have updated some weights
        for parameter in module.parameters():
            parameter.grad = None
        trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")
