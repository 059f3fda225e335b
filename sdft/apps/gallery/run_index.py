"""The runs below a folder, newest first: their `run.json` is read once for each time it is written, and nothing else is."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdft.apps.gallery.run_facts import (
    FINAL_STATES,
    RunFacts,
    parse_run_facts,
    parse_timestamp,
    to_dict_or_empty,
    to_text,
)
from sdft.apps.gallery.safe_paths import is_visible_name, read_safe_bytes, read_safe_json
from sdft.runs.lock import LOCK_FILE as LOCK
from sdft.runs.lock import is_alive

MAX_DEPTH = 3  # folders below the given one: NAME/STAMP, or NAME/STAMP/JOB of a sweep
RUN_MARKERS = (".hydra", "config.yaml", "metrics.csv")  # of a run that has no run.json
STARTUP_SECONDS = 60  # seconds that a run may take until its run.json is there
SKIPPED_FOLDERS = ("cache", "wandb")
SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class IndexedRun:
    """`id` names it in addresses; `state` is one of `facts.STATES`, and `detail` says more of it."""

    id: str
    folder: Path
    facts: RunFacts
    state: str
    detail: str
    sweep: str | None  # its id
    at: float  # when it started, seconds since 1970

    @property
    def name(self) -> str:
        return get_display_name(self)


@dataclass(frozen=True)
class IndexedSweep:
    id: str
    folder: Path
    jobs: list[IndexedRun]

    @property
    def name(self) -> str:
        return get_display_name(self)

    @property
    def at(self) -> float:
        return max((job.at for job in self.jobs), default=0.0)


def get_display_name(one: IndexedRun | IndexedSweep) -> str:
    """As the folder that was given has it."""
    return one.id.partition("/")[2] or one.folder.name


class RunIndex:
    """`roots` are folders by the word that stands for each in addresses. Links below them are not followed."""

    def __init__(self, roots: dict[str, Path]):
        self.roots = roots
        self.known: dict[
            Path, tuple[tuple, RunFacts, str]
        ] = {}  # stamp of run.json, what it says, what is wrong with it

    def scan(self) -> tuple[list[IndexedRun], list[IndexedSweep]]:
        """All runs, newest first, and the sweeps that some of them are jobs of, with these by their numbers."""
        found = list(self.folders())
        runs = [self.run(id, folder, sweep) for id, folder, sweep, job in found if job]
        there = {run.folder for run in runs}
        self.known = {folder: told for folder, told in self.known.items() if folder in there}
        jobs: dict[str, list[IndexedRun]] = {}
        for run in sorted(runs, key=lambda run: (len(run.folder.name), run.folder.name)):
            if run.sweep:
                jobs.setdefault(run.sweep, []).append(run)
        sweeps = [IndexedSweep(id, folder, jobs[id]) for id, folder, _, job in found if not job and id in jobs]
        return sorted(runs, key=lambda run: (run.at, run.id), reverse=True), sweeps

    def folders(self) -> Iterator[tuple[str, Path, str | None, bool]]:
        """Id and folder of every run and, with False, of every sweep; of a job also the id of its sweep."""
        for word, place in self.roots.items():
            yield from walk_runs(word, place, 0, None)

    def find(self, id: str) -> IndexedRun | None:
        """The run of an id, if there is one."""
        word, _, rest = id.partition("/")
        parts = rest.split("/") if rest else []
        if word not in self.roots or len(parts) > MAX_DEPTH or not all(map(is_visible_name, parts)):
            return None
        folder, root = self.roots[word].joinpath(*parts), self.roots[word].resolve()
        if folder.resolve() != root.joinpath(*parts) or not is_run_folder(folder):
            return None
        sweep = id.rpartition("/")[0] if (folder.parent / SWEEP_FILE).is_file() and parts else None
        return self.run(id, folder, sweep)

    def run(self, id: str, folder: Path, sweep: str | None) -> IndexedRun:
        file = folder / "run.json"
        try:
            told = file.stat()
            stamp = (told.st_mtime_ns, told.st_size)
            before = self.known.get(folder)
            _, facts, fault = before if before and before[0] == stamp else (stamp, *parse_run_json(folder))
            self.known[folder] = (stamp, facts, fault)
        except OSError:
            facts, fault, told = RunFacts(), "it has no run.json: it never started, or lost it", None
        state, detail = determine_state(facts, fault, folder)
        at = parse_timestamp(facts.started)
        if at is None:
            at = told.st_mtime if told else get_modified_time(folder)
        return IndexedRun(id, folder, facts, state, detail, sweep, at)

    def content(self, address: str) -> bytes:
        """Of a file below one of the roots; `OSError` for everything else."""
        word, _, rest = address.partition("/")
        if word not in self.roots:
            raise FileNotFoundError(word)
        return read_safe_bytes(self.roots[word], *rest.split("/"))


def walk_runs(id: str, folder: Path, depth: int, sweep: str | None) -> Iterator[tuple[str, Path, str | None, bool]]:
    if is_run_folder(folder):
        yield id, folder, sweep, True
        return
    if depth == MAX_DEPTH:
        return
    if (folder / SWEEP_FILE).is_file():
        sweep = id
        yield id, folder, None, False
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and is_visible_name(entry.name)
            ]
    except OSError:
        return
    for name in names:
        if name not in SKIPPED_FOLDERS:
            yield from walk_runs(f"{id}/{name}", folder / name, depth + 1, sweep)


def is_run_folder(folder: Path) -> bool:
    return any(os.path.exists(folder / mark) for mark in ("run.json", *RUN_MARKERS))


def parse_run_json(folder: Path) -> tuple[RunFacts, str]:
    """What a `run.json` says, and what is wrong with it."""
    told = read_safe_json(folder, "run.json")
    if told is None:
        return RunFacts(), "its run.json is cut off, or no JSON"
    facts = parse_run_facts(told)
    return facts, "" if facts.state in (*FINAL_STATES, "running", "trained") else "its run.json names no state"


def determine_state(facts: RunFacts, fault: str, folder: Path) -> tuple[str, str]:
    """Whether a run that says it runs still does: its lock names its process, which may be gone."""
    if facts.state in FINAL_STATES:
        return facts.state, ""
    holder = to_dict_or_empty(read_safe_json(folder, LOCK))
    pid, host = holder.get("pid"), to_text(holder.get("host"))
    if host and host != socket.gethostname():
        quiet = time.time() - get_modified_time(folder / "metrics.csv", folder)
        return "running", f"on {host}, last heard of {format_age(quiet)} ago"
    if host and isinstance(pid, int) and 0 < pid < 2**31 and is_alive(pid):
        return "running", "" if facts.state else "it is starting"
    if (
        fault
        and not facts.state
        and time.time() - get_modified_time(folder) < STARTUP_SECONDS
        and not (folder / "run.json").exists()
    ):
        return "running", "it is starting"
    if fault:
        return "broken", fault
    ended = "its evaluation did not end" if facts.state == "trained" else "its process is gone, without a word"
    return "stopped", ended


def format_age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def get_modified_time(*paths: Path) -> float:
    """When the first of them that is there was changed; 0 when none is."""
    for path in paths:
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0
