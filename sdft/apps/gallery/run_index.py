"""The runs below a folder, newest first: their `run.json` is read once for each time it is written, and nothing else is."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdft.apps.gallery.run_facts import ENDS, Facts, mapping, read, text, when
from sdft.apps.gallery.safe_paths import content, json_of, shown
from sdft.runs.lock import NAME as LOCK
from sdft.runs.lock import alive

DEEPEST = 3  # folders below the given one: NAME/STAMP, or NAME/STAMP/JOB of a sweep
MARKS = (".hydra", "config.yaml", "metrics.csv")  # of a run that has no run.json
STARTING = 60  # seconds that a run may take until its run.json is there
PASSED_OVER = ("cache", "wandb")
SWEEP = "sweep.json"


@dataclass(frozen=True)
class Run:
    """`id` names it in addresses; `state` is one of `facts.STATES`, and `why` says more of it."""

    id: str
    folder: Path
    facts: Facts
    state: str
    why: str
    sweep: str | None  # its id
    at: float  # when it started, seconds since 1970

    @property
    def name(self) -> str:
        return named(self)


@dataclass(frozen=True)
class Sweep:
    id: str
    folder: Path
    jobs: list[Run]

    @property
    def name(self) -> str:
        return named(self)

    @property
    def at(self) -> float:
        return max((job.at for job in self.jobs), default=0.0)


def named(one: Run | Sweep) -> str:
    """As the folder that was given has it."""
    return one.id.partition("/")[2] or one.folder.name


class Shelf:
    """`places` are folders by the word that stands for each in addresses. Links below them are not followed."""

    def __init__(self, places: dict[str, Path]):
        self.places = places
        self.known: dict[Path, tuple[tuple, Facts, str]] = {}  # stamp of run.json, what it says, what is wrong with it

    def scan(self) -> tuple[list[Run], list[Sweep]]:
        """All runs, newest first, and the sweeps that some of them are jobs of, with these by their numbers."""
        found = list(self.folders())
        runs = [self.run(id, folder, sweep) for id, folder, sweep, job in found if job]
        there = {run.folder for run in runs}
        self.known = {folder: told for folder, told in self.known.items() if folder in there}
        jobs: dict[str, list[Run]] = {}
        for run in sorted(runs, key=lambda run: (len(run.folder.name), run.folder.name)):
            if run.sweep:
                jobs.setdefault(run.sweep, []).append(run)
        sweeps = [Sweep(id, folder, jobs[id]) for id, folder, _, job in found if not job and id in jobs]
        return sorted(runs, key=lambda run: (run.at, run.id), reverse=True), sweeps

    def folders(self) -> Iterator[tuple[str, Path, str | None, bool]]:
        """Id and folder of every run and, with False, of every sweep; of a job also the id of its sweep."""
        for word, place in self.places.items():
            yield from below(word, place, 0, None)

    def find(self, id: str) -> Run | None:
        """The run of an id, if there is one."""
        word, _, rest = id.partition("/")
        parts = rest.split("/") if rest else []
        if word not in self.places or len(parts) > DEEPEST or not all(map(shown, parts)):
            return None
        folder, root = self.places[word].joinpath(*parts), self.places[word].resolve()
        if folder.resolve() != root.joinpath(*parts) or not is_run(folder):
            return None
        sweep = id.rpartition("/")[0] if (folder.parent / SWEEP).is_file() and parts else None
        return self.run(id, folder, sweep)

    def run(self, id: str, folder: Path, sweep: str | None) -> Run:
        file = folder / "run.json"
        try:
            told = file.stat()
            stamp = (told.st_mtime_ns, told.st_size)
            before = self.known.get(folder)
            _, facts, fault = before if before and before[0] == stamp else (stamp, *understood(folder))
            self.known[folder] = (stamp, facts, fault)
        except OSError:
            facts, fault, told = Facts(), "it has no run.json: it never started, or lost it", None
        state, why = state_of(facts, fault, folder)
        at = when(facts.started)
        if at is None:
            at = told.st_mtime if told else changed(folder)
        return Run(id, folder, facts, state, why, sweep, at)

    def content(self, address: str) -> bytes:
        """Of a file below one of the places; `OSError` for everything else."""
        word, _, rest = address.partition("/")
        if word not in self.places:
            raise FileNotFoundError(word)
        return content(self.places[word], *rest.split("/"))


def below(id: str, folder: Path, depth: int, sweep: str | None) -> Iterator[tuple[str, Path, str | None, bool]]:
    if is_run(folder):
        yield id, folder, sweep, True
        return
    if depth == DEEPEST:
        return
    if (folder / SWEEP).is_file():
        sweep = id
        yield id, folder, None, False
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and shown(entry.name)]
    except OSError:
        return
    for name in names:
        if name not in PASSED_OVER:
            yield from below(f"{id}/{name}", folder / name, depth + 1, sweep)


def is_run(folder: Path) -> bool:
    return any(os.path.exists(folder / mark) for mark in ("run.json", *MARKS))


def understood(folder: Path) -> tuple[Facts, str]:
    """What a `run.json` says, and what is wrong with it."""
    told = json_of(folder, "run.json")
    if told is None:
        return Facts(), "its run.json is cut off, or no JSON"
    facts = read(told)
    return facts, "" if facts.state in (*ENDS, "running", "trained") else "its run.json names no state"


def state_of(facts: Facts, fault: str, folder: Path) -> tuple[str, str]:
    """Whether a run that says it runs still does: its lock names its process, which may be gone."""
    if facts.state in ENDS:
        return facts.state, ""
    holder = mapping(json_of(folder, LOCK))
    pid, host = holder.get("pid"), text(holder.get("host"))
    if host and host != socket.gethostname():
        quiet = time.time() - changed(folder / "metrics.csv", folder)
        return "running", f"on {host}, last heard of {age(quiet)} ago"
    if host and isinstance(pid, int) and 0 < pid < 2**31 and alive(pid):
        return "running", "" if facts.state else "it is starting"
    if fault and not facts.state and time.time() - changed(folder) < STARTING and not (folder / "run.json").exists():
        return "running", "it is starting"
    if fault:
        return "broken", fault
    ended = "its evaluation did not end" if facts.state == "trained" else "its process is gone, without a word"
    return "stopped", ended


def age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def changed(*paths: Path) -> float:
    """When the first of them that is there was changed; 0 when none is."""
    for path in paths:
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0
