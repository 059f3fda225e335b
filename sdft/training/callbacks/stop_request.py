"""Stop a run on request: save a checkpoint at the next step and exit with the status of the request's signal."""

import signal
from pathlib import Path

from lightning import Callback

import sdft.distributed as processes
from sdft.runs.invocation import StopRequest


class StoppedOnRequest(Exception):
    """`status` is 128 + the signal's number, as in shells."""

    def __init__(self, number: int, step: int):
        super().__init__(f"{signal.Signals(number).name} at step {step}")
        self.status, self.step = 128 + number, step


class StopRequestListener(Callback):
    """Announce when training begins and ends to poll the request.

    Lightning handles SIGTERM from just before `on_train_start`, where this callback must come before all that take time.
    """

    def __init__(self, request: StopRequest):
        self.request = request

    def setup(self, trainer, module, stage):
        self.request.listen()

    def on_train_start(self, trainer, module):
        self.request.listen()

    def teardown(self, trainer, module, stage):
        self.request.close()

    def on_exception(self, trainer, module, exception):
        if not isinstance(exception, StoppedOnRequest):
            self.request.close()


class StopOnRequest(Callback):
    """Save a checkpoint and stop all ranks after the step in which one of them is requested to stop."""

    def __init__(self, request: StopRequest):
        self.request = request

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        number = processes.all_reduce_max(self.request.number)
        if number and trainer.global_step < trainer.max_steps:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")
            raise StoppedOnRequest(number, trainer.global_step)
