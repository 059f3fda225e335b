"""Stop a run after a signal: save a checkpoint at the next step and exit with the signal's status."""

import signal
import threading

from lightning import Callback

import sdft.distributed as processes

HANDLED_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]


class StoppedBySignal(Exception):
    """`status` is 128 + the signal's number, as in shells."""

    def __init__(self, number: int, step: int):
        super().__init__(f"{signal.Signals(number).name} at step {step}")
        self.status, self.step = 128 + number, step


class SignalHandler(Callback):
    """Note the last received signal during training. Without a launcher, a second signal kills the process.

    Lightning handles SIGTERM from just before `on_train_start`, where this callback must come before all that take time.
    """

    def __init__(self):
        self.received, self.previous_handlers = 0, {}

    def setup(self, trainer, module, stage):
        if threading.current_thread() is threading.main_thread():  # others cannot handle signals
            self.previous_handlers = {number: signal.getsignal(number) for number in HANDLED_SIGNALS}

    def on_train_start(self, trainer, module):
        for number in self.previous_handlers:
            signal.signal(number, self.handle_signal)

    def teardown(self, trainer, module, stage):
        self.restore_handlers()

    def on_exception(self, trainer, module, exception):
        self.restore_handlers()

    def restore_handlers(self) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
        self.previous_handlers = {}

    def handle_signal(self, number, frame) -> None:
        if self.received and not processes.is_launched():
            self.restore_handlers()
            signal.raise_signal(number)
        self.received = number


class StopOnSignal(Callback):
    """Save a checkpoint and stop all ranks after the step in which one of them receives a signal."""

    def __init__(self, handler: SignalHandler, folder):
        self.handler, self.folder = handler, folder

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        received = processes.all_reduce_max(self.handler.received)
        if received and trainer.global_step < trainer.max_steps:
            trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")
            raise StoppedBySignal(received, trainer.global_step)
