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

    Place it before callbacks that may run out of memory, so that it sees the end of every step.
    """

    def __init__(self):
        self.first_step, self.is_saving, self.loop_state = 0, False, {}

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
        self.is_saving = True
        trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.loop_state = trainer.fit_loop.state_dict()

    def on_save_checkpoint(self, trainer, module, checkpoint):
        """Store the loop's state at the end of the last complete step, without micro-batches of the incomplete one."""
        if self.is_saving:
            checkpoint["loops"]["fit_loop"] = self.loop_state
