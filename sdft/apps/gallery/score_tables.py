"""Rows of scores, from the evaluations of a run."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdft.apps.gallery.run_facts import to_finite_float, to_text
from sdft.runs.evaluations import (
    SCORES_FILE,
    add_facts,
    choose_comparable_evaluations,
    choose_main_evaluation,
    classify_change,
    describe_result,
    get_comparison_key,
    is_outdated,
    list_evaluations,
    read_scores,
)
from sdft.runs.links import resolve_safe_path
from sdft.runs.metadata import RECORD_FILE

FINE_TUNED_LABEL, PROMPTS_GROUP = "fine-tuned", "prompts"
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
    outdated: str  # "of step N" if the run was trained further since

    @property
    def key(self) -> str:
        return self.name if self.group == PROMPTS_GROUP else f"{self.group}/{self.name}"


def read_safe_evaluations(folder: Path) -> list[dict]:
    """The readable evaluations of a run, in order."""
    try:
        resolve_safe_path(folder, RECORD_FILE)
        result = describe_result(folder)
    except (OSError, ValueError):
        result = {}
    reports = []
    for path in list_evaluations(folder):
        try:
            status = resolve_safe_path(folder, path.name, SCORES_FILE).stat()
            reports.append(add_facts(read_cached_scores(path, status.st_mtime_ns, status.st_size), path, result))
        except (OSError, ValueError):
            continue
    return reports


@lru_cache(maxsize=256)
def read_cached_scores(folder: Path, changed: int, size: int) -> dict:
    """Cached until the file changes."""
    return read_scores(folder)


def list_score_rows(folder: Path) -> list[ScoreRow]:
    """Scores of a run's main evaluation; empty if there is none."""
    return build_score_rows(choose_main_evaluation(read_safe_evaluations(folder)))


def list_comparable_rows(folders: list[Path]) -> tuple[list[list[ScoreRow]], bool]:
    """Scores of alike evaluations of the runs, or of their main ones, and whether they are alike."""
    reports = choose_comparable_evaluations([read_safe_evaluations(folder) for folder in folders])
    alike = len({get_comparison_key(report) for report in reports if report}) < 2
    return [build_score_rows(report) for report in reports], alike


def build_score_rows(report: dict | None) -> list[ScoreRow]:
    if not report:
        return []
    states, step = report["states"], report["outdated_step"]
    outdated = f"of step {step}" if is_outdated(report) else ""
    result = next((state for state in states if state["label"] == FINE_TUNED_LABEL), states[-1])
    rows = []
    for group, metrics in report["metrics"].items():
        for name, metric in metrics.items():
            base, score = states[0]["scores"][group][name], result["scores"][group][name]
            gain, real = (source.get(group, {}).get(name) for source in (result["difference"], report["reference"]))
            rows.append(build_score_row(group, name, metric, base, score, gain, real, outdated))
    return [row for row in rows if row.value]


def build_score_row(
    group: str, name: str, metric: dict, base: dict, score: dict, gain: dict | None, real: float | None, outdated: str
) -> ScoreRow:
    number_format = metric["number_format"]
    low, high = (format_number(score.get(end), number_format) for end in ("low", "high"))
    change = format_number((gain or {}).get("value"), number_format)
    return ScoreRow(
        to_text(group),
        to_text(name),
        to_text(metric["description"]),
        metric["higher_is_better"],
        format_number(base["value"], number_format),
        format_number(score["value"], number_format),
        f"{low} – {high}" if low and high else "",
        f"+{change}" if change and gain["value"] > 0 else change,
        classify_change(gain, metric, score, real),
        outdated,
    )


def format_number(value: float | None, number_format: str) -> str:
    """Empty for missing values and those that the format does not accept."""
    value = to_finite_float(value)
    try:
        return "" if value is None else number_format.format(value)
    except ValueError:
        return f"{value:.3f}"
