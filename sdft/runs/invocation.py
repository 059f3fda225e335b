"""How a program was started: everything that the code below the command line needs to know about it."""

import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class ExitStatus(Exception):
    """End the program with `status`; what there is to say has been printed. The command line exits with it."""

    def __init__(self, status: int):
        super().__init__(f"exit status {status}")
        self.status = status


class StopRequest:
    """A request to save a checkpoint and stop training after the current step. `number` is its signal, 0 without a request.

    Training polls it between `listen` and `close`. Any thread may call `send`; the command line does for signals.
    """

    def __init__(self):
        self.number = 0

    def send(self, number: int = signal.SIGTERM) -> None:
        self.number = number

    def listen(self) -> None:
        """Training polls from now on; called again after Lightning has set its own signal handler."""

    def close(self) -> None:
        """Training has ended."""


@dataclass(frozen=True)
class Invocation:
    """One start of a program that trains.

    `folder` is the run folder, `command` the command line as typed, `overrides` the config overrides on it, and `choices` the
    selected file of each config group. `restart` and `arguments` start the program again in other processes. `stop_request` ends
    the run early.
    """

    folder: Path
    command: tuple[str, ...] = ("train.py",)
    overrides: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    restart: tuple[str, ...] = (sys.executable, "train.py")
    arguments: tuple[str, ...] = ()
    stop_request: StopRequest = field(default_factory=StopRequest)
