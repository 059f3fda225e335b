"""What `run.json` says, as far as it can be understood: a run folder may be another's, or cut off, and is shown all the same."""

import math
import re
import shlex
from dataclasses import dataclass, field
from datetime import datetime

ENDS = ("finished", "failed", "stopped")
STATES = ("running", *ENDS, "broken")
LONGEST = 2000  # characters of one text on a page
OURS = re.compile(
    r"-m|--multirun|[~+]{0,2}(?!hydra)\w[\w.@/-]*=.*|~\w[\w.@/-]*", re.DOTALL
)  # words that train.py takes

OWN = "hydra.run.dir="  # of a job of a sweep: the folder that it fills


def text(value, otherwise: str = "") -> str:
    """A text, or a number as one; `otherwise` for whatever else there may be."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST else value[:LONGEST] + " …"
    return str(value) if isinstance(value, int | float) else otherwise


def number(value) -> float | None:
    """None for what is none, and for what is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def mapping(value) -> dict:
    return value if isinstance(value, dict) else {}


def listing(value) -> list:
    return value if isinstance(value, list) else []


def word(value) -> str:
    """The value of a word as one would give it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(word, value)) + "]"
    return text(value, "…")


@dataclass
class Facts:
    """`state` is what the file says; whether the process is still there is another question."""

    state: str = ""
    started: str = ""
    ended: str = ""
    command: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    device: str = ""
    commit: str = ""
    data: str = ""  # digest of the training data
    versions: str = ""
    warnings: list[str] = field(default_factory=list)
    best: str = ""
    resumed: int = 0


def read(told) -> Facts:
    """From the content of a `run.json`, whatever that is."""
    told = mapping(told)
    best, losses = mapping(told.get("best")), listing(told.get("validation_loss"))
    found = {
        "learns": sum(filter(None, map(number, mapping(told.get("learns")).values()))) or None,
        "memory_gb": number(mapping(told.get("last")).get("memory_gb")),
        "loss_first": number(losses[0]) if losses else None,
        "loss_last": number(losses[1]) if len(losses) > 1 else None,
        **{name: number(told.get(name)) for name in ("steps", "stopped_at", "seconds", "seconds_per_step")},
        **{name: number(told.get(name)) for name in ("result_mb", "images", "resolution")},
    }
    versions = mapping(told.get("versions")).items()
    return Facts(
        state=text(told.get("state")),
        started=text(told.get("started")),
        ended=text(told.get("ended")),
        command=[text(part) for part in listing(told.get("command"))],
        overrides=[text(part) for part in listing(told.get("overrides"))],
        words={text(key): word(value) for key, value in mapping(told.get("words")).items()},
        numbers={name: value for name, value in found.items() if value is not None},
        device=text(told.get("device")),
        commit=text(told.get("commit")),
        data=text(mapping(told.get("digests")).get("data")),
        versions=", ".join(f"{text(name)} {text(version)}" for name, version in versions),
        warnings=[text(line) for line in listing(told.get("warnings"))],
        best=f"step {text(best.get('step'))}: {text(best.get('metric'))} {text(best.get('value'))}" if best else "",
        resumed=len(listing(told.get("resumed"))),
    )


def when(stamp: str) -> float | None:
    """Seconds since 1970 of a time as `run.json` has it."""
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def command_line(command: list[str]) -> tuple[str, bool]:
    """How it would be typed, and whether it may be offered for that: train.py, with words that call nothing by themselves.

    A folder may be another's, and what is copied is run.
    """
    command = [part for part in command if not part.startswith(OWN)]
    said = shlex.join(["python", *command])
    plain = said.isprintable() and command[:1] == ["train.py"]
    safe = plain and all(OURS.fullmatch(part) and "_target_" not in part for part in command[1:])
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in said), safe
