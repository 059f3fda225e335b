"""What `run.json` says, as far as it can be understood: a run folder may be another's, or cut off, and is shown all the same."""

import math
import re
import shlex
from dataclasses import dataclass, field
from datetime import datetime

FINAL_STATES = ("finished", "failed", "stopped")
RUN_STATES = ("running", *FINAL_STATES, "broken")
MAX_TEXT_LENGTH = 2000  # characters of one text on a page
SAFE_ARGUMENT = re.compile(
    r"-m|--multirun|[~+]{0,2}(?!hydra)\w[\w.@/-]*=.*|~\w[\w.@/-]*", re.DOTALL
)  # options that train.py takes

RUN_DIR_OVERRIDE = "hydra.run.dir="  # of a job of a sweep: the folder that it fills


def to_text(value, otherwise: str = "") -> str:
    """A text, or a number as one; `otherwise` for whatever else there may be."""
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT_LENGTH else value[:MAX_TEXT_LENGTH] + " …"
    return str(value) if isinstance(value, int | float) else otherwise


def to_finite_float(value) -> float | None:
    """None for what is none, and for what is not finite."""
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
    """The value of a word as one would give it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(format_option_value, value)) + "]"
    return to_text(value, "…")


@dataclass
class RunFacts:
    """`state` is what the file says; whether the process is still there is another question."""

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


def parse_run_facts(told) -> RunFacts:
    """From the content of a `run.json`, whatever that is."""
    told = to_dict_or_empty(told)
    best, losses = to_dict_or_empty(told.get("best")), to_list_or_empty(told.get("validation_loss"))
    found = {
        "trainable": sum(filter(None, map(to_finite_float, to_dict_or_empty(told.get("trainable")).values()))) or None,
        "memory_gb": to_finite_float(to_dict_or_empty(told.get("last")).get("memory_gb")),
        "loss_first": to_finite_float(losses[0]) if losses else None,
        "loss_last": to_finite_float(losses[1]) if len(losses) > 1 else None,
        **{name: to_finite_float(told.get(name)) for name in ("steps", "stopped_at", "seconds", "seconds_per_step")},
        **{name: to_finite_float(told.get(name)) for name in ("result_mb", "images", "resolution")},
    }
    versions = to_dict_or_empty(told.get("versions")).items()
    return RunFacts(
        state=to_text(told.get("state")),
        started=to_text(told.get("started")),
        ended=to_text(told.get("ended")),
        command=[to_text(part) for part in to_list_or_empty(told.get("command"))],
        overrides=[to_text(part) for part in to_list_or_empty(told.get("overrides"))],
        options={
            to_text(key): format_option_value(value) for key, value in to_dict_or_empty(told.get("options")).items()
        },
        numbers={name: value for name, value in found.items() if value is not None},
        device=to_text(told.get("device")),
        commit=to_text(told.get("commit")),
        data=to_text(to_dict_or_empty(told.get("digests")).get("data")),
        versions=", ".join(f"{to_text(name)} {to_text(version)}" for name, version in versions),
        warnings=[to_text(line) for line in to_list_or_empty(told.get("warnings"))],
        best=f"step {to_text(best.get('step'))}: {to_text(best.get('metric'))} {to_text(best.get('value'))}"
        if best
        else "",
        resumed=len(to_list_or_empty(told.get("resumed"))),
    )


def parse_timestamp(stamp: str) -> float | None:
    """Seconds since 1970 of a time as `run.json` has it."""
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def format_command(command: list[str]) -> tuple[str, bool]:
    """How it would be typed, and whether it may be offered for that: train.py, with options that call nothing by themselves.

    A folder may be another's, and what is copied is run.
    """
    command = [part for part in command if not part.startswith(RUN_DIR_OVERRIDE)]
    said = shlex.join(["python", *command])
    plain = said.isprintable() and command[:1] == ["train.py"]
    safe = plain and all(SAFE_ARGUMENT.fullmatch(part) and "_target_" not in part for part in command[1:])
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in said), safe
