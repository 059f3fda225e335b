"""A signal ends a run at the next step: saved, and with the exit status that says so."""

import signal

from lightning import Callback

import sdft.distributed as processes

HANDLED_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]


class StoppedBySignal(Exception):
    """`status` is 128 + the signal's number, as shells have it."""

    def __init__(self, number: int, step: int):
        super().__init__(f"{signal.Signals(number).name} at step {step}")
        self.status, self.step = 128 + number, step


class SignalHandler(Callback):
    """Of several processes all stop when one is told to. In one that nobody launched, a second signal ends it at once."""

    def __init__(self, folder):
        self.folder, self.told, self.before = folder, 0, {}

    def setup(self, trainer, module, stage):
        try:
            self.before = {number: signal.signal(number, self.handle_signal) for number in HANDLED_SIGNALS}
        except ValueError:
            self.before = {}  # not in the main thread, which alone hears signals

    def teardown(self, trainer, module, stage):
        self.forget()

    def on_exception(self, trainer, module, exception):
        self.forget()

    def forget(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def handle_signal(self, number, frame) -> None:
        if self.told and not processes.is_launched():
            self.forget()
            signal.raise_signal(number)
        self.told = number

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        told = processes.all_reduce_max(self.told)
        if told and trainer.global_step < trainer.max_steps:
            trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")
            raise StoppedBySignal(told, trainer.global_step)
