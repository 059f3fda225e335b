"""A job that runs elsewhere: what is sent there, and what comes back."""

import os
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sdft.distributed import tied
from sdft.sweeps.jobs import LOG, Job, ready

SAVING = 60  # seconds that a job has for it; submitit is told 90 before the end
MANY = 16  # jobs at a time, where a queue sorts them out


@dataclass
class Call:
    """A command to be run elsewhere, in the same folder; its output goes to `log`. `RuntimeError` when it fails."""

    command: list[str]
    log: str
    home: str

    def __call__(self) -> int:
        with open(os.path.join(self.home, self.log), "a") as log:
            told = {"stdout": log, "stderr": subprocess.STDOUT, "preexec_fn": tied(os.getpid())}
            self.process = subprocess.Popen(self.command, cwd=self.home, **told)
            if code := self.process.wait():
                raise RuntimeError(f"exit status {code}")
        return 0

    def checkpoint(self):
        """What submitit sends again when a cluster takes the machine away: it goes on from what the job saves now."""
        from submitit.helpers import DelayedSubmission

        self.process.terminate()
        try:
            self.process.wait(SAVING)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        words = [word for word in self.command if not word.startswith("resume=")]
        return DelayedSubmission(Call([*words, *ready(Path(self.home, self.log).parent)], self.log, self.home))


def call(job: Job) -> Call:
    return Call(job.prepared(), str(job.folder / LOG), os.getcwd())


def need(package: str) -> None:
    if find_spec(package) is None:
        raise ValueError(f"launcher={package}: not installed; pip install {package}")
