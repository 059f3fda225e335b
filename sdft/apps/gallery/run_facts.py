"""Tolerant parser of `run.json`: run folders are untrusted and may be incomplete."""

import math
import re
from dataclasses import dataclass, field
from datetime import datetime

from sdft.runs.metadata import format_command_line

FINAL_STATES = ("finished", "failed", "stopped")
RUN_STATES = ("running", *FINAL_STATES, "broken")
MAX_TEXT_LENGTH = 2000  # characters
SAFE_ARGUMENT = re.compile(
    r"-m|--multirun|[~+]{0,2}(?!hydra)\w[\w.@/-]*=.*|~\w[\w.@/-]*", re.DOTALL
)  # overrides of train.py

TRAIN_PROGRAMS = (["train.py"], ["sdft", "train"])
RUN_DIR_OVERRIDE = "hydra.run.dir="  # added to jobs of a sweep


def to_text(value, otherwise: str = "") -> str:
    """Strings and numbers as text, `otherwise` for other types."""
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT_LENGTH else value[:MAX_TEXT_LENGTH] + " …"
    return str(value) if isinstance(value, int | float) else otherwise


def to_finite_float(value) -> float | None:
    """A finite number as float, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def to_dict_or_empty(value) -> dict:
    return value if isinstance(value, dict) else {}


def to_list_or_empty(value) -> list:
    return value if isinstance(value, list) else []


def format_option_value(value) -> str:
    """The value of an option in override syntax."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(format_option_value, value)) + "]"
    return to_text(value, "…")


@dataclass
class RunFacts:
    """Content of `run.json`; `state` is as written, even if the process has died since."""

    state: str = ""
    started: str = ""
    ended: str = ""
    command: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    device: str = ""
    commit: str = ""
    data: str = ""  # digest of the training data
    versions: str = ""
    warnings: list[str] = field(default_factory=list)
    best: str = ""
    resumed: int = 0


def parse_run_facts(content) -> RunFacts:
    """Parse the JSON content of a `run.json`, which may be anything."""
    content = to_dict_or_empty(content)
    best, losses = to_dict_or_empty(content.get("best")), to_list_or_empty(content.get("validation_loss"))
    numbers = {
        "trainable": sum(filter(None, map(to_finite_float, to_dict_or_empty(content.get("trainable")).values())))
        or None,
        "memory_gb": to_finite_float(to_dict_or_empty(content.get("last")).get("memory_gb")),
        "loss_first": to_finite_float(losses[0]) if losses else None,
        "loss_last": to_finite_float(losses[1]) if len(losses) > 1 else None,
        **{name: to_finite_float(content.get(name)) for name in ("steps", "stopped_at", "seconds", "seconds_per_step")},
        **{name: to_finite_float(content.get(name)) for name in ("result_mb", "images", "resolution")},
    }
    versions = to_dict_or_empty(content.get("versions")).items()
    return RunFacts(
        state=to_text(content.get("state")),
        started=to_text(content.get("started")),
        ended=to_text(content.get("ended")),
        command=[to_text(part) for part in to_list_or_empty(content.get("command"))],
        overrides=[to_text(part) for part in to_list_or_empty(content.get("overrides"))],
        options={
            to_text(key): format_option_value(value) for key, value in to_dict_or_empty(content.get("options")).items()
        },
        numbers={name: value for name, value in numbers.items() if value is not None},
        device=to_text(content.get("device")),
        commit=to_text(content.get("commit")),
        data=to_text(to_dict_or_empty(content.get("digests")).get("data")),
        versions=", ".join(f"{to_text(name)} {to_text(version)}" for name, version in versions),
        warnings=[to_text(line) for line in to_list_or_empty(content.get("warnings"))],
        best=f"step {to_text(best.get('step'))}: {to_text(best.get('metric'))} {to_text(best.get('value'))}"
        if best
        else "",
        resumed=len(to_list_or_empty(content.get("resumed"))),
    )


def parse_timestamp(stamp: str) -> float | None:
    """Seconds since 1970 of an ISO time."""
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def format_command(command: list[str]) -> tuple[str, bool]:
    """Shell command line, and whether it is safe to copy: train.py with overrides that cannot execute other code.

    Run folders are untrusted, and users run what they copy.
    """
    command = [part for part in command if not part.startswith(RUN_DIR_OVERRIDE)]
    line = format_command_line(command) if command else ""
    size = next((len(program) for program in TRAIN_PROGRAMS if command[: len(program)] == program), 0)
    is_train_command = line.isprintable() and size > 0
    is_safe = is_train_command and all(
        SAFE_ARGUMENT.fullmatch(part) and "_target_" not in part for part in command[size:]
    )
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in line), is_safe
