"""Run the jobs of a sweep: each a fresh process with a single-run command line, as many at a time as the launcher has slots."""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sdft.options.quoting import format_override
from sdft.runs.checkpoint_file import find_latest_checkpoint
from sdft.runs.metadata import read_state
from sdft.runs.terminal import print_text

LOG_FILE = "log.txt"
POLL_SECONDS = 0.2
PROGRAM = (sys.executable, "train.py")  # what a job runs, without its overrides


@dataclass(eq=False)
class Job:
    folder: Path
    overrides: list[str]
    label: str
    program: tuple[str, ...] = PROGRAM

    def state(self) -> str | None:
        """The state in its `run.json`."""
        return read_state(self.folder)

    def is_finished(self) -> bool:
        return self.state() == "finished"

    def build_command(self) -> list[str]:
        """Prepare the job's folder and return its command line."""
        resume = prepare_job_folder(self.folder)
        flags = [text for text in self.overrides if text.startswith("-")]  # must precede all overrides
        overrides = [text for text in self.overrides if text not in flags]
        return [*self.program, *flags, *overrides, *resume, format_override("hydra.run.dir", self.folder)]


def prepare_job_folder(folder: Path) -> list[str]:
    """Return `[resume=FOLDER]` if the job has a checkpoint; otherwise empty its folder."""
    if (folder / "run.json").is_file() and find_latest_checkpoint(folder / "checkpoints"):
        return [format_override("resume", folder)]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return []


class JobHandle(Protocol):
    """A started job."""

    def exit_code(self) -> int | None:
        """Its exit status, None while it runs."""

    def stop(self) -> None:
        """End it early."""


class Launcher(Protocol):
    """Where jobs run: at most `slots` at a time, in the order they are started.

    `writes_logs` when jobs write to log files, `receives_sigint` when jobs receive the Ctrl-C of this terminal.
    """

    slots: int
    writes_logs: bool
    receives_sigint: bool

    def prepare(self, folder: Path, configs: list) -> None:
        """Called before the first job with the jobs' composed configs; raises `ValueError` if they cannot be run."""

    def start(self, job: Job) -> JobHandle: ...


class JobSource(Protocol):
    """Provides jobs, `total` of them as far as is known; `failed` are those that ended with an error."""

    total: int
    failed: list[Job]

    def next_job(self) -> Job | None: ...

    def should_stop(self, job: Job) -> bool:
        """Whether to stop the job early."""

    def record_end(self, job: Job, code: int) -> str:
        """Record the end of a job; returns its outcome: finished, failed or pruned."""


class JobList:
    """A fixed list of jobs."""

    def __init__(self, jobs: list[Job], total: int):
        self.pending, self.total, self.failed = list(jobs), total, []

    def next_job(self) -> Job | None:
        return self.pending.pop(0) if self.pending else None

    def should_stop(self, job: Job) -> bool:
        return False

    def record_end(self, job: Job, code: int) -> str:
        if code == 0 and job.is_finished():
            return "finished"
        self.failed.append(job)
        return "failed"


def run_jobs(source: JobSource, launcher: Launcher, program: tuple[str, ...]) -> None:
    """Start jobs of `program` while `source` has some and slots are free, and record how each ended."""
    running: dict[Job, JobHandle] = {}
    try:
        run_until_done(source, launcher, program, running)
    except (KeyboardInterrupt, SystemExit) as end:
        if launcher.receives_sigint and running:
            print_text("stopping: jobs save a checkpoint; press Ctrl-C again to end them at once", flush=True)
            jobs_got_sigint = isinstance(end, KeyboardInterrupt)  # from the terminal
            for handle in running.values() if not jobs_got_sigint else ():
                handle.stop()
            while any(handle.exit_code() is None for handle in running.values()):
                time.sleep(POLL_SECONDS)
        print_text("stopped    repeat the same command to resume the sweep: only unfinished jobs run", flush=True)
        raise


def run_until_done(
    source: JobSource, launcher: Launcher, program: tuple[str, ...], running: dict[Job, JobHandle]
) -> None:
    stopped: set[Job] = set()
    while True:
        while len(running) < launcher.slots and (job := source.next_job()):
            log = f", log in {job.folder / LOG_FILE}" if launcher.writes_logs else ""
            print_text(f"job        {format_job_number(job, source)}: {job.label}{log}", flush=True)
            job.program = program
            running[job] = launcher.start(job)
        if not running:
            return
        time.sleep(POLL_SECONDS)
        for job, handle in list(running.items()):
            code = handle.exit_code()
            if code is None and job not in stopped and source.should_stop(job):
                stopped.add(job)
                handle.stop()
            elif code is not None:
                del running[job]
                outcome = source.record_end(job, code)
                if launcher.writes_logs or outcome != "finished":
                    print_text(f"{outcome:<10} {format_job_number(job, source)}: {job.label}", flush=True)


def format_job_number(job: Job, source: JobSource) -> str:
    number = int(job.folder.name) + 1
    return f"{number} of {max(number, source.total)}"


def print_finished_jobs(done: int, total: int, folder: Path) -> None:
    if done:
        print_text(f"sweep      {done} of {total} jobs are finished in {folder}/; delete it to rerun them", flush=True)


def print_failed_jobs(source: JobSource) -> None:
    if source.failed:
        labels = "; ".join(job.label for job in source.failed)
        print_text(f"error: {len(source.failed)} of {source.total} jobs failed: {labels}", file=sys.stderr)
