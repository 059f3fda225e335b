"""What evaluations found, from `scores.json`, as far as it can be understood."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdft.apps.gallery.run_facts import to_dict_or_empty, to_finite_float, to_list_or_empty, to_text
from sdft.apps.gallery.safe_paths import read_safe_json, resolve_safe_path

SCORES_FILE = ("evaluation", "scores.json")
FINE_TUNED_LABEL, PROMPTS_GROUP = "fine-tuned", "prompts"
NUMBER_FORMAT = re.compile(r"\{:[+,]?(\.\d)?[fgd%]?\}")  # a file's own way to print a number must be no more than that
GROUP_TITLES = {PROMPTS_GROUP: "What was taught", "class": "Its class", "controls": "What must stay as it was"}


@dataclass(frozen=True)
class ScoreRow:
    """Of the run's result, beside its base's; texts, and empty where there is none."""

    group: str
    name: str
    what: str
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
    """Of the last evaluation of a run; none where there is none that can be read."""
    try:
        told = resolve_safe_path(folder, *SCORES_FILE).stat()
    except OSError:
        return []
    return list(parse_score_rows(folder, told.st_mtime_ns, told.st_size))


@lru_cache(maxsize=256)
def parse_score_rows(folder: Path, changed: int, size: int) -> tuple[ScoreRow, ...]:
    """Read once for each time that the file is written."""
    report = to_dict_or_empty(read_safe_json(folder, *SCORES_FILE))
    states = [to_dict_or_empty(state) for state in to_list_or_empty(report.get("states"))]
    if not states:
        return ()
    result = next((state for state in states if state.get("label") == FINE_TUNED_LABEL), states[-1])
    found = []
    for group, rows in to_dict_or_empty(report.get("metrics")).items():
        for name, told in to_dict_or_empty(rows).items():
            at = lambda state, kind="scores", path=(group, name): get_nested_dict(state, kind, *path)  # noqa: E731
            found.append(
                build_score_row(
                    to_text(group),
                    to_text(name),
                    to_dict_or_empty(told),
                    at(states[0]),
                    at(result),
                    at(result, "difference"),
                )
            )
    return tuple(one for one in found if one.value)


def get_nested_dict(state: dict, *path: str) -> dict:
    for name in path:
        state = to_dict_or_empty(state.get(name))
    return state


def build_score_row(group: str, name: str, told: dict, base: dict, result: dict, gain: dict) -> ScoreRow:
    number_format, up = to_text(told.get("number_format")), told.get("higher_is_better") is True
    low, high = format_with_spec(result.get("low"), number_format), format_with_spec(result.get("high"), number_format)
    change, ends = (
        to_finite_float(gain.get("value")),
        (to_finite_float(gain.get("low")), to_finite_float(gain.get("high"))),
    )
    verdict = "unclear"
    if change is not None and None not in ends and not ends[0] <= 0 <= ends[1] and told.get("against") != "real":
        verdict = "better" if (change > 0) == up else "worse"
    signed = format_with_spec(change, number_format)
    return ScoreRow(
        group,
        name,
        to_text(told.get("what")),
        up,
        format_with_spec(base.get("value"), number_format),
        format_with_spec(result.get("value"), number_format),
        f"{low} – {high}" if low and high else "",
        f"+{signed}" if signed and change > 0 else signed,
        verdict,
    )


def format_with_spec(value, number_format: str) -> str:
    """As its file wants it, if that is a plain way to print a number."""
    value = to_finite_float(value)
    if value is None:
        return ""
    try:
        return (number_format if NUMBER_FORMAT.fullmatch(number_format) else "{:.3f}").format(value)
    except ValueError:
        return f"{value:.3f}"
