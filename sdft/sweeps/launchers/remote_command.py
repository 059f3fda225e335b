"""A job that runs elsewhere: what is sent there, and what comes back."""

import os
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sdft.distributed import exit_with_parent
from sdft.sweeps.jobs import LOG_FILE, Job, prepare_job_folder

SAVE_TIMEOUT_SECONDS = 60  # seconds that a job has for it; submitit is told 90 before the end
MAX_QUEUED_JOBS = 16  # jobs at a time, where a queue sorts them out


@dataclass
class RemoteCommand:
    """A command to be run elsewhere, in the same folder; its output goes to `log`. `RuntimeError` when it fails."""

    command: list[str]
    log: str
    home: str

    def __call__(self) -> int:
        with open(os.path.join(self.home, self.log), "a") as log:
            told = {"stdout": log, "stderr": subprocess.STDOUT, "preexec_fn": exit_with_parent(os.getpid())}
            self.process = subprocess.Popen(self.command, cwd=self.home, **told)
            if code := self.process.wait():
                raise RuntimeError(f"exit status {code}")
        return 0

    def checkpoint(self):
        """What submitit sends again when a cluster takes the machine away: it goes on from what the job saves now."""
        from submitit.helpers import DelayedSubmission

        self.process.terminate()
        try:
            self.process.wait(SAVE_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        words = [word for word in self.command if not word.startswith("resume=")]
        return DelayedSubmission(
            RemoteCommand([*words, *prepare_job_folder(Path(self.home, self.log).parent)], self.log, self.home)
        )


def build_remote_command(job: Job) -> RemoteCommand:
    return RemoteCommand(job.build_command(), str(job.folder / LOG_FILE), os.getcwd())


def require_package(package: str) -> None:
    if find_spec(package) is None:
        raise ValueError(f"launcher={package}: not installed; pip install {package}")
