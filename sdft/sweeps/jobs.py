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

from sdft.runs.checkpoint_file import newest
from sdft.runs.files import read_json

LOG = "log.txt"
LOOK = 0.2  # seconds between looks at what runs


@dataclass(eq=False)
class Job:
    folder: Path
    words: list[str]
    label: str

    def state(self) -> str | None:
        """As its run says."""
        return read_json(self.folder / "run.json").get("state")

    def finished(self) -> bool:
        return self.state() == "finished"

    def prepared(self) -> list[str]:
        """Its command line, once its folder is ready."""
        resume = ready(self.folder)
        flags = [word for word in self.words if word.startswith("-")]  # behind other words they would end them
        words = [word for word in self.words if word not in flags]
        return [sys.executable, os.path.abspath(sys.argv[0]), *flags, *words, *resume, f"hydra.run.dir={self.folder}"]


def ready(folder: Path) -> list[str]:
    """The word by which a job goes on with what it has saved; without any, nothing is left of what it has begun."""
    if (folder / "run.json").is_file() and newest(folder / "checkpoints"):
        return [f"resume={folder}"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return []


class Handle(Protocol):
    """A job that runs somewhere."""

    def code(self) -> int | None:
        """Its exit status, None while it runs."""

    def stop(self) -> None:
        """End it early."""


class Launcher(Protocol):
    """Where jobs run: `slots` of them at a time, in the order they are started in; `logs` when they write to files, `here` when
    they hear the Ctrl-C of this terminal."""

    slots: int
    logs: bool
    here: bool

    def prepare(self, folder: Path, configs: list) -> None:
        """Before the first job; `configs` are what jobs will compose, `ValueError` when there is no room for one."""

    def start(self, job: Job) -> Handle: ...


class Feed(Protocol):
    """Where jobs come from: about `total` of them; `failed` are those that did not end well."""

    total: int
    failed: list[Job]

    def next(self) -> Job | None: ...

    def hopeless(self, job: Job) -> bool:
        """Whether it may be stopped before its end."""

    def ended(self, job: Job, code: int) -> str:
        """How it went, in a word."""


class Listed:
    """Jobs that are known beforehand."""

    def __init__(self, jobs: list[Job], total: int):
        self.left, self.total, self.failed = list(jobs), total, []

    def next(self) -> Job | None:
        return self.left.pop(0) if self.left else None

    def hopeless(self, job: Job) -> bool:
        return False

    def ended(self, job: Job, code: int) -> str:
        if code == 0 and job.finished():
            return "finished"
        self.failed.append(job)
        return "failed"


def run_all(feed: Feed, launcher: Launcher) -> None:
    """Start jobs while `feed` has some and there is room, and tell it how each ended."""
    running: dict[Job, Handle] = {}
    try:
        with told_to_end():
            keep_running(feed, launcher, running)
    except (KeyboardInterrupt, SystemExit) as end:
        if launcher.here and running:
            print("stopping: the jobs save what they have; once more ends them at once", flush=True)
            told = isinstance(end, KeyboardInterrupt)  # by the terminal, themselves
            for handle in running.values() if not told else ():
                handle.stop()
            while any(handle.code() is None for handle in running.values()):
                time.sleep(LOOK)
        raise


@contextmanager
def told_to_end():
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


def keep_running(feed: Feed, launcher: Launcher, running: dict[Job, Handle]) -> None:
    stopped: set[Job] = set()
    while True:
        while len(running) < launcher.slots and (job := feed.next()):
            where = f", log in {job.folder / LOG}" if launcher.logs else ""
            print(f"job      {nth(job, feed)}: {job.label}{where}", flush=True)
            running[job] = launcher.start(job)
        if not running:
            return
        time.sleep(LOOK)
        for job, handle in list(running.items()):
            code = handle.code()
            if code is None and job not in stopped and feed.hopeless(job):
                stopped.add(job)
                handle.stop()
            elif code is not None:
                del running[job]
                how = feed.ended(job, code)
                if launcher.logs or how != "finished":
                    print(f"{how:<8} {nth(job, feed)}: {job.label}", flush=True)


def nth(job: Job, feed: Feed) -> str:
    number = int(job.folder.name) + 1
    return f"{number} of {max(number, feed.total)}"
