"""Evaluations of a run: each has its own folder with scores, images and report; those that are alike can be compared."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdft.runs.files import atomic_write, check_format_version, check_structure, read_json
from sdft.runs.metadata import RECORD_FILE, read_record

EVALUATION_FOLDER, SCORES_FILE = "evaluation", "scores.json"  # later evaluations are in evaluation-2, evaluation-3, …
SCORES_FORMAT = 1
DIGITS_DATA = ("digits", "inked_digits")  # choices of `data` that the embedded tiny-clip can score
NUMBER_FORMAT = re.compile(r"\{:[+,]?(\.\d)?[fgd%]?\}")  # number formats that a file may give
NUMBER_OR_NULL = (int, float, type(None))
SCORE = {
    "value": NUMBER_OR_NULL,
    **dict.fromkeys(("low?", "high?"), NUMBER_OR_NULL),
    **dict.fromkeys(("count?", "of?"), int),
    "per_image?": [NUMBER_OR_NULL],
    "per_prompt?": [NUMBER_OR_NULL],
}
METRIC = {"higher_is_better": bool, "number_format": str, "description": str, "baseline": str}
SCORES_STRUCTURE = {
    "schema": int,
    "settings": str,
    "scorers": {"*": str},
    "images": int,
    "sampling": {"*": (str, list, *NUMBER_OR_NULL)},
    "groups": {"*": [str]},
    "metrics": {"*": {"*": METRIC}},
    "states": [{"label": str, "image_folder": str, "scores": {"*": {"*": SCORE}}, "difference": {"*": {"*": SCORE}}}],
    "reference": {"*": {"*": NUMBER_OR_NULL}},
    "result?": {"weights": str, "steps": int},
}


def read_scores(folder: Path) -> dict:
    """The content of `scores.json`; `ValueError` for another format version, and for a damaged or edited file."""
    file = folder / SCORES_FILE
    report = read_json(file)
    check_format_version(report.get("schema"), SCORES_FORMAT, file)
    check_structure(report, SCORES_STRUCTURE, str(file))
    if not report["states"]:
        raise ValueError(f"{file}: no states; the file was edited")
    for group, metrics in report["metrics"].items():
        for name, metric in metrics.items():
            if not NUMBER_FORMAT.fullmatch(metric["number_format"]):
                raise ValueError(
                    f"{file}: number_format {metric['number_format'][:40]!r} is unknown; the file was edited"
                )
            if any(name not in state["scores"].get(group, {}) for state in report["states"]):
                raise ValueError(f"{file}: a state has no {name[:40]!r}; the file was edited")
        if group not in report["groups"]:
            raise ValueError(f"{file}: no prompts of {group[:40]!r}; the file was edited")
    return report


def write_scores(folder: Path, report: dict) -> None:
    with atomic_write(folder / SCORES_FILE) as file:
        file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def list_evaluations(run: Path) -> list[Path]:
    """Folders of the complete evaluations of a run, in the order in which they were made."""
    folders = [file.parent for file in run.glob(f"{EVALUATION_FOLDER}*/{SCORES_FILE}")]
    numbered = {parse_number(folder.name): folder for folder in folders}
    return [numbered[number] for number in sorted(filter(None, numbered))]


def parse_number(name: str) -> int | None:
    """Number of an evaluation folder; None for other names."""
    match = re.fullmatch(rf"{EVALUATION_FOLDER}(?:-([1-9]\d{{0,5}}))?", name)
    return int(match[1] or 1) if match else None


def read_evaluations(run: Path) -> list[dict]:
    """The scores of all evaluations of a run, in order, each with its `path` and `outdated_step`."""
    result = describe_result(run)
    return [add_facts(read_scores(folder), folder, result) for folder in list_evaluations(run)]


def describe_result(run: Path) -> dict:
    """Digest and step of a run's result, for `result` of its evaluations; empty without a record of them."""
    record = read_record(run) if (run / RECORD_FILE).is_file() else {}
    if "result_digest" not in record or "steps" not in record:
        return {}
    return {"weights": record["result_digest"], "steps": record.get("stopped_at", record["steps"])}


def add_facts(report: dict, folder: Path, result: dict) -> dict:
    """`report` with its `path` and `outdated_step`: the step it scored if the run, now with `result`, was trained further."""
    scored = report.get("result", result)
    is_outdated = bool(result) and scored["weights"] != result["weights"]
    return report | {"path": folder, "outdated_step": scored["steps"] if is_outdated else None}


def is_outdated(report: dict) -> bool:
    return report.get("outdated_step") is not None


def choose_evaluation_folder(first: Path, settings: str) -> Path:
    """The folder for an evaluation with these settings: that of an equal earlier one, else a new one beside `first`."""
    for number in range(1, 10**6):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        if not (folder / SCORES_FILE).is_file() or read_scores(folder)["settings"] == settings:
            return folder
    raise ValueError(f"{first.parent}: too many evaluations; delete some")


def list_missing_options(choices: Mapping[str, Any]) -> list[str]:
    """The `metrics=…` that evaluate requires for a run with these choices of config groups; none if it has metrics."""
    if choices.get("metrics") not in (None, "none"):
        return []
    return ["metrics=digits" if choices.get("data") in DIGITS_DATA else "metrics=clip"]


def get_comparison_key(report: dict) -> str:
    """Scores are comparable when this is equal: scorers, prompts, number of images, seeds and sampling options."""
    sampling = drop_batch_size(report["sampling"])
    return json.dumps([report["scorers"], report["groups"], report["images"], sampling], sort_keys=True)


def drop_batch_size(sampling: dict) -> dict:
    """The sampling options that images depend on."""
    return {key: value for key, value in sampling.items() if key != "batch_size"}


def classify_change(gain: dict | None, metric: dict, score: dict, real: float | None) -> str:
    """better or worse if the interval of the change excludes zero; with baseline `real`, worse if the score's excludes `real`."""
    if not gain or any(gain.get(key) is None for key in ("value", "low", "high")):
        return "unclear"
    up = metric["higher_is_better"]
    if metric["baseline"] == "real" and real is not None:
        if score.get("high" if up else "low") is None:
            return "unclear"
        return "worse" if (score["high"] < real if up else score["low"] > real) else "unclear"
    if gain["low"] <= 0 <= gain["high"]:
        return "unclear"
    return "better" if (gain["value"] > 0) == up else "worse"


def count_images(report: dict) -> int:
    return report["images"] * sum(map(len, report["groups"].values()))


def choose_main_evaluation(reports: list[dict]) -> dict | None:
    """The evaluation that stands for a run: of its present result if there is one, of most images, the newest of equals."""
    return max(reversed(reports), key=lambda report: (not is_outdated(report), count_images(report)), default=None)


def choose_comparable_evaluations(reports_by_run: list[list[dict]]) -> list[dict | None]:
    """One evaluation per run: alike ones if all runs have such, else the main one of each.

    Those of the runs' present results are preferred, then those of most images.
    """
    sorted_reports = [sorted(reports, key=is_outdated, reverse=True) for reports in reports_by_run]
    keyed = [{get_comparison_key(report): report for report in reports} for reports in sorted_reports]
    common = set.intersection(*map(set, keyed)) if keyed else set()
    if not common:
        return [choose_main_evaluation(reports) for reports in reports_by_run]
    num_current = {key: sum(not is_outdated(by_key[key]) for by_key in keyed) for key in common}
    best = max(sorted(common), key=lambda key: (num_current[key], count_images(keyed[0][key])))
    return [by_key[best] for by_key in keyed]
