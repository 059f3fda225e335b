"""Index of the runs below a folder; each `run.json` is parsed once per change."""

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
    to_text,
)
from sdft.runs.links import is_visible_name, read_safe_bytes, read_safe_json, resolve_safe_path
from sdft.runs.lock import LOCK_FILE as LOCK
from sdft.runs.lock import is_alive
from sdft.runs.metadata import RECORD_FILE, read_record

MAX_DEPTH = 3  # folder levels: NAME/STAMP, or NAME/STAMP/JOB of a sweep
RUN_MARKERS = (".hydra", "config.yaml", "metrics.csv")  # identify a run without run.json
STARTUP_SECONDS = 60  # time limit for run.json to appear
SKIPPED_FOLDERS = ("cache", "wandb")
SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class IndexedRun:
    """`id` is its path in URLs; `state` is one of `RUN_STATES`, and `detail` explains it."""

    id: str
    folder: Path
    facts: RunFacts
    state: str
    detail: str
    sweep: str | None  # its id
    at: float  # start time, seconds since 1970

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


def get_display_name(item: IndexedRun | IndexedSweep) -> str:
    """Path relative to the root folder."""
    return item.id.partition("/")[2] or item.folder.name


class RunIndex:
    """`roots` maps the first part of ids to folders. Symbolic links below them are not followed."""

    def __init__(self, roots: dict[str, Path]):
        self.roots = roots
        self.cache: dict[Path, tuple[tuple, RunFacts, str]] = {}  # stamp of run.json, its facts, its error

    def scan(self) -> tuple[list[IndexedRun], list[IndexedSweep]]:
        """All runs, newest first, and the sweeps that contain some of them, with jobs in numeric order."""
        entries = list(self.walk_folders())
        runs = [self.index_run(id, folder, sweep) for id, folder, sweep, is_run in entries if is_run]
        folders = {run.folder for run in runs}
        self.cache = {folder: entry for folder, entry in self.cache.items() if folder in folders}
        jobs: dict[str, list[IndexedRun]] = {}
        for run in sorted(runs, key=lambda run: (len(run.folder.name), run.folder.name)):
            if run.sweep:
                jobs.setdefault(run.sweep, []).append(run)
        sweeps = [IndexedSweep(id, folder, jobs[id]) for id, folder, _, is_run in entries if not is_run and id in jobs]
        return sorted(runs, key=lambda run: (run.at, run.id), reverse=True), sweeps

    def walk_folders(self) -> Iterator[tuple[str, Path, str | None, bool]]:
        """(id, folder, id of its sweep, whether it is a run) of every run and sweep."""
        for name, root in self.roots.items():
            yield from walk_runs(name, root, 0, None)

    def find_run(self, id: str) -> IndexedRun | None:
        """The run with this id, or None."""
        name, _, path = id.partition("/")
        parts = path.split("/") if path else []
        if name not in self.roots or len(parts) > MAX_DEPTH or not all(map(is_visible_name, parts)):
            return None
        folder, root = self.roots[name].joinpath(*parts), self.roots[name].resolve()
        if folder.resolve() != root.joinpath(*parts) or not is_run_folder(folder):
            return None
        sweep = id.rpartition("/")[0] if (folder.parent / SWEEP_FILE).is_file() and parts else None
        return self.index_run(id, folder, sweep)

    def index_run(self, id: str, folder: Path, sweep: str | None) -> IndexedRun:
        file = folder / "run.json"
        try:
            status = file.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            entry = self.cache.get(folder)
            _, facts, error = entry if entry and entry[0] == stamp else (stamp, *parse_run_json(folder))
            self.cache[folder] = (stamp, facts, error)
        except OSError:
            facts, error, status = RunFacts(), "run.json is missing", None
        state, detail = determine_state(facts, error, folder)
        at = parse_timestamp(facts.started)
        if at is None:
            at = status.st_mtime if status else get_modified_time(folder)
        return IndexedRun(id, folder, facts, state, detail, sweep, at)

    def read_file(self, address: str) -> bytes:
        """Content of a file below one of the roots; `OSError` otherwise."""
        name, _, path = address.partition("/")
        if name not in self.roots:
            raise FileNotFoundError(name)
        return read_safe_bytes(self.roots[name], *path.split("/"))


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
    return any(os.path.exists(folder / name) for name in ("run.json", *RUN_MARKERS))


def parse_run_json(folder: Path) -> tuple[RunFacts, str]:
    """Facts of a `run.json`, and an error message, empty if it is valid."""
    try:
        resolve_safe_path(folder, RECORD_FILE)
        return parse_run_facts(read_record(folder)), ""
    except OSError:
        return RunFacts(), f"{RECORD_FILE} is not a file of this folder"
    except ValueError as error:
        return RunFacts(), to_text(str(error).removeprefix(f"{folder}/"))


def determine_state(facts: RunFacts, error: str, folder: Path) -> tuple[str, str]:
    """State and detail; a run that was not finished is running only if the process in its lock is alive."""
    if facts.state in FINAL_STATES:
        return facts.state, ""
    holder = read_safe_json(folder, LOCK, structure={"pid": int, "host": str})
    pid, host = holder.get("pid", 0), to_text(holder.get("host"))
    if host and host != socket.gethostname():
        silence = time.time() - get_modified_time(folder / "metrics.csv", folder)
        return "running", f"on {host}, last update {format_age(silence)} ago"
    if host and 0 < pid < 2**31 and is_alive(pid):
        return "running", "" if facts.state else "starting"
    if (
        error
        and not facts.state
        and time.time() - get_modified_time(folder) < STARTUP_SECONDS
        and not (folder / "run.json").exists()
    ):
        return "running", "starting"
    if error:
        return "broken", error
    detail = "evaluation did not finish" if facts.state == "trained" else "process died without a message"
    return "stopped", detail


def format_age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def get_modified_time(*paths: Path) -> float:
    """Modification time of the first path that exists, or 0."""
    for path in paths:
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0
