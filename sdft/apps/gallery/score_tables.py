"""Tolerant parser of evaluation scores in `scores.json`."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdft.apps.gallery.run_facts import to_dict_or_empty, to_finite_float, to_list_or_empty, to_text
from sdft.apps.gallery.safe_paths import read_safe_json, resolve_safe_path

SCORES_FILE = ("evaluation", "scores.json")
FINE_TUNED_LABEL, PROMPTS_GROUP = "fine-tuned", "prompts"
NUMBER_FORMAT = re.compile(r"\{:[+,]?(\.\d)?[fgd%]?\}")  # the only format specs accepted from a file
GROUP_TITLES = {PROMPTS_GROUP: "Training concept", "class": "Class", "controls": "Control prompts"}


@dataclass(frozen=True)
class ScoreRow:
    """One score of the run and of its base, formatted; missing values are empty."""

    group: str
    name: str
    description: str
    up: bool
    base: str
    value: str
    interval: str
    change: str
    verdict: str  # better | worse | unclear

    @property
    def key(self) -> str:
        return self.name if self.group == PROMPTS_GROUP else f"{self.group}/{self.name}"


def list_score_rows(folder: Path) -> list[ScoreRow]:
    """Scores of the last evaluation of a run; empty if there is none or it is unreadable."""
    try:
        status = resolve_safe_path(folder, *SCORES_FILE).stat()
    except OSError:
        return []
    return list(parse_score_rows(folder, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=256)
def parse_score_rows(folder: Path, changed: int, size: int) -> tuple[ScoreRow, ...]:
    """Cached until the file changes."""
    report = to_dict_or_empty(read_safe_json(folder, *SCORES_FILE))
    states = [to_dict_or_empty(state) for state in to_list_or_empty(report.get("states"))]
    if not states:
        return ()
    result = next((state for state in states if state.get("label") == FINE_TUNED_LABEL), states[-1])
    score_rows = []
    for group, rows in to_dict_or_empty(report.get("metrics")).items():
        for name, metric in to_dict_or_empty(rows).items():
            at = lambda state, kind="scores", path=(group, name): get_nested_dict(state, kind, *path)  # noqa: E731
            score_rows.append(
                build_score_row(
                    to_text(group),
                    to_text(name),
                    to_dict_or_empty(metric),
                    at(states[0]),
                    at(result),
                    at(result, "difference"),
                )
            )
    return tuple(row for row in score_rows if row.value)


def get_nested_dict(state: dict, *path: str) -> dict:
    for name in path:
        state = to_dict_or_empty(state.get(name))
    return state


def build_score_row(group: str, name: str, metric: dict, base: dict, result: dict, gain: dict) -> ScoreRow:
    number_format, up = to_text(metric.get("number_format")), metric.get("higher_is_better") is True
    low, high = format_with_spec(result.get("low"), number_format), format_with_spec(result.get("high"), number_format)
    change, ends = (
        to_finite_float(gain.get("value")),
        (to_finite_float(gain.get("low")), to_finite_float(gain.get("high"))),
    )
    verdict = "unclear"
    if change is not None and None not in ends and not ends[0] <= 0 <= ends[1] and metric.get("baseline") != "real":
        verdict = "better" if (change > 0) == up else "worse"
    signed = format_with_spec(change, number_format)
    return ScoreRow(
        group,
        name,
        to_text(metric.get("description")),
        up,
        format_with_spec(base.get("value"), number_format),
        format_with_spec(result.get("value"), number_format),
        f"{low} – {high}" if low and high else "",
        f"+{signed}" if signed and change > 0 else signed,
        verdict,
    )


def format_with_spec(value, number_format: str) -> str:
    """Format with the file's spec if it is accepted, else with three decimals."""
    value = to_finite_float(value)
    if value is None:
        return ""
    try:
        return (number_format if NUMBER_FORMAT.fullmatch(number_format) else "{:.3f}").format(value)
    except ValueError:
        return f"{value:.3f}"
