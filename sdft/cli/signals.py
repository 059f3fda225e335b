"""Signals of a program: a stop request while training polls it, otherwise an exit with the signal's status."""

import signal
import threading

from sdft.distributed import is_launched
from sdft.runs.invocation import StopRequest

STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name)
]
HANGUP = getattr(signal, "SIGHUP", None)  # not on Windows


class SignalListener(StopRequest):
    """Handles the signals of this process inside its context and gives the handlers back.

    A second signal during training kills the process, unless a launcher has started it: it may receive each signal twice. So may
    every process that loses its terminal: a repeated SIGHUP is ignored. SIGHUP ignored at the start (nohup) stays ignored.
    """

    def __init__(self):
        super().__init__()
        self.is_polled, self.previous_handlers = False, {}

    def __enter__(self) -> "SignalListener":
        if threading.current_thread() is threading.main_thread():  # others cannot handle signals
            handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
            self.previous_handlers = {n: h for n, h in handlers.items() if n != HANGUP or h != signal.SIG_IGN}
        for number, previous in self.previous_handlers.items():
            if previous == signal.SIG_DFL:
                signal.signal(number, self.handle)
        return self

    def __exit__(self, *_) -> None:
        for number, previous in self.previous_handlers.items():
            signal.signal(number, previous)

    def listen(self) -> None:
        self.is_polled = True
        for number in self.previous_handlers:
            signal.signal(number, self.handle)

    def close(self) -> None:
        self.is_polled, self.number = False, 0

    def handle(self, number: int, frame) -> None:
        if self.is_polled:
            if number == HANGUP:
                self.number = self.number or number
            elif self.number in (0, HANGUP) or is_launched():
                self.number = number
            else:
                self.use_previous_handler(number)
        elif callable(self.previous_handlers[number]):
            self.previous_handlers[number](number, frame)  # KeyboardInterrupt
        elif self.previous_handlers[number] == signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN if number == HANGUP else signal.SIG_DFL)  # a second one kills
            raise SystemExit(128 + number)

    def use_previous_handler(self, number: int) -> None:
        signal.signal(number, self.previous_handlers[number])
        signal.raise_signal(number)
