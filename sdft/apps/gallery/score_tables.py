"""What evaluations found, from `scores.json`, as far as it can be understood."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdft.apps.gallery.run_facts import listing, mapping, number, text
from sdft.apps.gallery.safe_paths import json_of, own

FILE = ("evaluation", "scores.json")
TUNED, PROMPTS = "fine-tuned", "prompts"
FORM = re.compile(r"\{:[+,]?(\.\d)?[fgd%]?\}")  # a file's own way to print a number must be no more than that
TITLES = {PROMPTS: "What was taught", "class": "Its class", "controls": "What must stay as it was"}


@dataclass(frozen=True)
class Score:
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
        return self.name if self.group == PROMPTS else f"{self.group}/{self.name}"


def scores(folder: Path) -> list[Score]:
    """Of the last evaluation of a run; none where there is none that can be read."""
    try:
        told = own(folder, *FILE).stat()
    except OSError:
        return []
    return list(understood(folder, told.st_mtime_ns, told.st_size))


@lru_cache(maxsize=256)
def understood(folder: Path, changed: int, size: int) -> tuple[Score, ...]:
    """Read once for each time that the file is written."""
    report = mapping(json_of(folder, *FILE))
    states = [mapping(state) for state in listing(report.get("states"))]
    if not states:
        return ()
    result = next((state for state in states if state.get("label") == TUNED), states[-1])
    found = []
    for group, rows in mapping(report.get("metrics")).items():
        for name, told in mapping(rows).items():
            at = lambda state, kind="scores", path=(group, name): dug(state, kind, *path)  # noqa: E731
            found.append(
                score(text(group), text(name), mapping(told), at(states[0]), at(result), at(result, "difference"))
            )
    return tuple(one for one in found if one.value)


def dug(state: dict, *path: str) -> dict:
    for name in path:
        state = mapping(state.get(name))
    return state


def score(group: str, name: str, told: dict, base: dict, result: dict, gain: dict) -> Score:
    form, up = text(told.get("form")), told.get("higher_is_better") is True
    low, high = printed(result.get("low"), form), printed(result.get("high"), form)
    change, ends = number(gain.get("value")), (number(gain.get("low")), number(gain.get("high")))
    verdict = "unclear"
    if change is not None and None not in ends and not ends[0] <= 0 <= ends[1] and told.get("against") != "real":
        verdict = "better" if (change > 0) == up else "worse"
    signed = printed(change, form)
    return Score(
        group,
        name,
        text(told.get("what")),
        up,
        printed(base.get("value"), form),
        printed(result.get("value"), form),
        f"{low} – {high}" if low and high else "",
        f"+{signed}" if signed and change > 0 else signed,
        verdict,
    )


def printed(value, form: str) -> str:
    """As its file wants it, if that is a plain way to print a number."""
    value = number(value)
    if value is None:
        return ""
    try:
        return (form if FORM.fullmatch(form) else "{:.3f}").format(value)
    except ValueError:
        return f"{value:.3f}"
