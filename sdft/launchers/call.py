"""A job that runs elsewhere: what is sent there, and what comes back."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from sdft.jobs import LOG, Job
from sdft.processes import end_with

MANY = 16  # jobs at a time, where a queue sorts them out


@dataclass
class Call:
    """A command to be run elsewhere, in the same folder; its output goes to `log`."""

    command: list[str]
    log: str
    home: str

    def __call__(self) -> int:
        with open(os.path.join(self.home, self.log), "a") as log:
            told = {"stdout": log, "stderr": subprocess.STDOUT, "preexec_fn": partial(end_with, os.getpid())}
            return subprocess.run(self.command, cwd=self.home, **told).returncode

    def checkpoint(self):
        """What submitit sends again, from its beginning, when a cluster takes the machine away."""
        from submitit.helpers import DelayedSubmission

        folder = os.path.join(self.home, os.path.dirname(self.log))
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        return DelayedSubmission(self)


def call(job: Job) -> Call:
    return Call(job.cleared(), str(job.folder / LOG), os.getcwd())


def need(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise ValueError(f'launcher={package}: not installed; pip install "sdft[{extra}]", or pip install {package}')


class Future:
    """A job in an executor."""

    def __init__(self, future):
        self.future = future

    def code(self) -> int | None:
        if not self.future.done():
            return None
        try:
            return self.result()
        except Exception as error:  # whatever happened to it there
            print(f"         {type(error).__name__}: {str(error).strip().splitlines()[-1:] or ''}", flush=True)
            return 1

    def result(self) -> int:
        return self.future.result()

    def stop(self) -> None:
        self.future.cancel()
