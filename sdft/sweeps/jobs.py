"""Jobs of a sweep: each a fresh process with a single-run command line, as many at a time as its launcher has room for."""

import os
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sdft.runs.checkpoint_file import find_latest_checkpoint
from sdft.runs.files import read_json

LOG_FILE = "log.txt"
POLL_SECONDS = 0.2  # seconds between looks at what runs


@dataclass(eq=False)
class Job:
    folder: Path
    overrides: list[str]
    label: str

    def state(self) -> str | None:
        """As its run says."""
        return read_json(self.folder / "run.json").get("state")

    def is_finished(self) -> bool:
        return self.state() == "finished"

    def build_command(self) -> list[str]:
        """Its command line, once its folder is ready."""
        resume = prepare_job_folder(self.folder)
        flags = [word for word in self.overrides if word.startswith("-")]  # behind other overrides they would end them
        overrides = [word for word in self.overrides if word not in flags]
        return [
            sys.executable,
            os.path.abspath(sys.argv[0]),
            *flags,
            *overrides,
            *resume,
            f"hydra.run.dir={self.folder}",
        ]


def prepare_job_folder(folder: Path) -> list[str]:
    """The word by which a job goes on with what it has saved; without any, nothing is left of what it has begun."""
    if (folder / "run.json").is_file() and find_latest_checkpoint(folder / "checkpoints"):
        return [f"resume={folder}"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return []


class JobHandle(Protocol):
    """A job that runs somewhere."""

    def exit_code(self) -> int | None:
        """Its exit status, None while it runs."""

    def stop(self) -> None:
        """End it early."""


class Launcher(Protocol):
    """Where jobs run: `slots` of them at a time, in the order they are started in; `writes_logs` when they write to files, `shares_terminal` when
    they hear the Ctrl-C of this terminal."""

    slots: int
    writes_logs: bool
    shares_terminal: bool

    def prepare(self, folder: Path, configs: list) -> None:
        """Before the first job; `configs` are what jobs will compose, `ValueError` when there is no room for one."""

    def start(self, job: Job) -> JobHandle: ...


class JobSource(Protocol):
    """Where jobs come from: about `total` of them; `failed` are those that did not end well."""

    total: int
    failed: list[Job]

    def next_job(self) -> Job | None: ...

    def should_stop(self, job: Job) -> bool:
        """Whether it may be stopped before its end."""

    def record_end(self, job: Job, code: int) -> str:
        """How it went, in a word."""


class JobList:
    """Jobs that are known beforehand."""

    def __init__(self, jobs: list[Job], total: int):
        self.left, self.total, self.failed = list(jobs), total, []

    def next_job(self) -> Job | None:
        return self.left.pop(0) if self.left else None

    def should_stop(self, job: Job) -> bool:
        return False

    def record_end(self, job: Job, code: int) -> str:
        if code == 0 and job.is_finished():
            return "finished"
        self.failed.append(job)
        return "failed"


def run_jobs(feed: JobSource, launcher: Launcher) -> None:
    """Start jobs while `feed` has some and there is room, and tell it how each ended."""
    running: dict[Job, JobHandle] = {}
    try:
        with exit_on_sigterm():
            run_until_done(feed, launcher, running)
    except (KeyboardInterrupt, SystemExit) as end:
        if launcher.shares_terminal and running:
            print("stopping: the jobs save what they have; once more ends them at once", flush=True)
            told = isinstance(end, KeyboardInterrupt)  # by the terminal, themselves
            for handle in running.values() if not told else ():
                handle.stop()
            while any(handle.exit_code() is None for handle in running.values()):
                time.sleep(POLL_SECONDS)
        raise


@contextmanager
def exit_on_sigterm():
    """SIGTERM ends a sweep as Ctrl-C does, with 143."""
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    except ValueError:  # not the main thread, which alone hears signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_until_done(feed: JobSource, launcher: Launcher, running: dict[Job, JobHandle]) -> None:
    stopped: set[Job] = set()
    while True:
        while len(running) < launcher.slots and (job := feed.next_job()):
            where = f", log in {job.folder / LOG_FILE}" if launcher.writes_logs else ""
            print(f"job      {format_job_number(job, feed)}: {job.label}{where}", flush=True)
            running[job] = launcher.start(job)
        if not running:
            return
        time.sleep(POLL_SECONDS)
        for job, handle in list(running.items()):
            code = handle.exit_code()
            if code is None and job not in stopped and feed.should_stop(job):
                stopped.add(job)
                handle.stop()
            elif code is not None:
                del running[job]
                how = feed.record_end(job, code)
                if launcher.writes_logs or how != "finished":
                    print(f"{how:<8} {format_job_number(job, feed)}: {job.label}", flush=True)


def format_job_number(job: Job, feed: JobSource) -> str:
    number = int(job.folder.name) + 1
    return f"{number} of {max(number, feed.total)}"
