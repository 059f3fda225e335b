"""How a program was started: everything that the code below the command line needs to know about it."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class ExitStatus(Exception):
    """End the program with `status`; what there is to say has been printed. The command line exits with it."""

    def __init__(self, status: int):
        super().__init__(f"exit status {status}")
        self.status = status


@dataclass(frozen=True)
class Invocation:
    """One start of a program that trains.

    `folder` is the run folder, `command` the command line as typed, `overrides` the config overrides on it, and `choices` the
    selected file of each config group. `restart` and `arguments` start the program again in other processes.
    """

    folder: Path
    command: tuple[str, ...] = ("train.py",)
    overrides: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    restart: tuple[str, ...] = (sys.executable, "train.py")
    arguments: tuple[str, ...] = ()
