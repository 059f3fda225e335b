"""How a program was started: everything that the code below the command line needs to know about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class ExitStatus(Exception):
    """Ends the program with `status`, after it has printed what there is to say; the command line exits with it."""

    def __init__(self, status: int):
        super().__init__(f"exit status {status}")
        self.status = status


@dataclass
class StopRequest:
    """Set by the owner of the process (a signal handler, a notebook) to stop a run at its next step; 0 means none."""

    signal: int = 0


@dataclass(frozen=True)
class Invocation:
    """One start of a program.

    `program` is the command as typed (`("python", "train.py")` or `("sdft", "train")`), `arguments` what followed it, `overrides` the
    config overrides among these, `choices` the selected file of each config group, `folder` the run folder, `script` the file that
    Python runs for it, so that launchers and sweeps can start it again.
    """

    folder: Path
    program: tuple[str, ...] = ("python", "train.py")
    arguments: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    script: Path | None = None
    stop: StopRequest = field(default_factory=StopRequest)
