"""What the gallery shows of a `run.json`: run folders are untrusted and may be incomplete."""

import math
from dataclasses import dataclass, field
from datetime import datetime

from sdft.runs.evaluations import list_missing_options
from sdft.runs.metadata import format_command_line
from sdft.runs.stored_options import are_plain_overrides

FINAL_STATES = ("finished", "failed", "stopped")
RUN_STATES = ("running", *FINAL_STATES, "broken")
MAX_TEXT_LENGTH = 2000  # characters
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
    missing_options: list[str] = field(default_factory=list)  # that evaluate requires


def parse_run_facts(record: dict) -> RunFacts:
    """Facts of a `run.json`, with limits on the length of texts."""
    best, losses = record.get("best"), record.get("validation_loss", [])
    numbers = {
        "trainable": sum(record.get("trainable", {}).values()) or None,
        "memory_gb": record.get("last", {}).get("memory_gb"),
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[1] if len(losses) > 1 else None,
        **{name: record.get(name) for name in ("steps", "stopped_at", "seconds", "seconds_per_step")},
        **{name: record.get(name) for name in ("result_mb", "images", "resolution")},
    }
    return RunFacts(
        state=record["state"],
        started=to_text(record.get("started")),
        ended=to_text(record.get("ended")),
        command=list(map(to_text, record.get("command", []))),
        overrides=list(map(to_text, record.get("overrides", []))),
        options={to_text(key): format_option_value(value) for key, value in record.get("options", {}).items()},
        numbers={name: number for name, value in numbers.items() if (number := to_finite_float(value)) is not None},
        device=to_text(record.get("device")),
        commit=to_text(record.get("commit")),
        data=to_text(record.get("digests", {}).get("data")),
        versions=", ".join(f"{to_text(name)} {to_text(one)}" for name, one in record.get("versions", {}).items()),
        warnings=list(map(to_text, record.get("warnings", []))),
        best=f"step {best['step']}: {to_text(best['metric'])} {to_text(best['value'])}" if best else "",
        resumed=len(record.get("resumed", [])),
        missing_options=list_missing_options(record.get("choices", {})),
    )


def parse_timestamp(stamp: str) -> float | None:
    """Seconds since 1970 of an ISO time."""
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def format_command(command: list[str]) -> tuple[str, bool]:
    """Shell command line, and whether it is safe to copy: train.py with options that a run folder may set.

    Run folders are untrusted, and users run what they copy.
    """
    command = [part for part in command if not part.startswith(RUN_DIR_OVERRIDE)]
    line = format_command_line(command) if command else ""
    size = next((len(program) for program in TRAIN_PROGRAMS if command[: len(program)] == program), 0)
    is_safe = line.isprintable() and size > 0 and are_plain_overrides(command[size:])
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in line), is_safe
