"""The command of a job on another machine."""

import os
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sdft.distributed import exit_with_parent
from sdft.sweeps.jobs import LOG_FILE, Job, prepare_job_folder

SAVE_TIMEOUT_SECONDS = 60  # to save a checkpoint; submitit signals 90 seconds before the end
MAX_QUEUED_JOBS = 16  # default number of jobs in a cluster's queue


@dataclass
class RemoteCommand:
    """A command to run remotely in folder `working_dir`; output goes to `log`. Raises `RuntimeError` if it fails."""

    command: list[str]
    log: str
    working_dir: str

    def __call__(self) -> int:
        with open(os.path.join(self.working_dir, self.log), "a") as log:
            options = {"stdout": log, "stderr": subprocess.STDOUT, "preexec_fn": exit_with_parent(os.getpid())}
            self.process = subprocess.Popen(self.command, cwd=self.working_dir, **options)
            if code := self.process.wait():
                raise RuntimeError(f"exit status {code}")
        return 0

    def checkpoint(self):
        """Called by submitit on preemption: stop the job, which saves a checkpoint, and resubmit it to resume from there."""
        from submitit.helpers import DelayedSubmission

        self.process.terminate()
        try:
            self.process.wait(SAVE_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        command = [argument for argument in self.command if not argument.startswith("resume=")]
        command += prepare_job_folder(Path(self.working_dir, self.log).parent)
        return DelayedSubmission(RemoteCommand(command, self.log, self.working_dir))


def build_remote_command(job: Job) -> RemoteCommand:
    return RemoteCommand(job.build_command(), str(job.folder / LOG_FILE), os.getcwd())


def require_package(package: str) -> None:
    if find_spec(package) is None:
        raise ValueError(f"launcher={package}: not installed; pip install {package}")
