"""Read finished runs for comparison: options, costs and scores, grouped by setting."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sdft.evaluation.statistics import flatten_scores, get_result_state
from sdft.runs.evaluations import (
    choose_comparable_evaluations,
    choose_main_evaluation,
    get_comparison_key,
    is_outdated,
    read_evaluations,
)
from sdft.runs.files import check_structure
from sdft.runs.links import check_links
from sdft.runs.metadata import RECORD_FILE, read_record

COST_FORMATS = {  # costs of a run, with their number formats
    "trainable": "{:,.0f}",
    "seconds": "{:.1f}",
    "s/it": "{:.3f}",
    "memory GB": "{:.2f}",
    "file MB": "{:.2f}",
    "validation/loss": "{:.4f}",
}
IGNORED_OPTIONS = ("name", "seed", "sweep", "tags", "resume", "prompts")  # do not define a setting
GROUP_OPTIONS = ("method", "model", "data", "optimizer", "schedule", "precision", "strategy")  # first in labels
VALIDATION_LOSS = "validation/loss"
FINISHED_KEYS = (
    "command",
    "options",
    "trainable",
    "seconds",
    "seconds_per_step",
    "last",
    "result_mb",
    "validation_loss",
)
LOWER_IS_BETTER = (
    VALIDATION_LOSS,
    "nearest",
    "PRES",
    "drift",
    "drift CMMD",
    "drift LPIPS",
    "face L2",
    "CMMD",
    "FID",
    "KID",
)


@dataclass
class FinishedRun:
    """A finished run: its options, costs, evaluation reports if it has some, and the one of them to compare.

    Losses are comparable when `loss_key` is equal: same data, resolution, prediction type and objective.
    """

    folder: Path
    options: dict
    costs: dict[str, float | None]
    loss: float  # of the base, at fixed noise
    device: str
    report: dict | None
    reports: list[dict] = field(default_factory=list)
    loss_key: str = ""

    @property
    def scores(self) -> dict[str, dict]:
        """Scores of the final result by name; in other groups than the prompts as `controls/drift`."""
        return flatten_scores(get_result_state(self.report)["scores"]) if self.report else {}

    @property
    def evaluation_key(self) -> str:
        """Scores of runs are comparable when this is equal."""
        return get_comparison_key(self.report) if self.report else ""

    def base_value(self, metric: str) -> float | None:
        """The base model's score."""
        if metric == VALIDATION_LOSS:
            return self.loss
        return flatten_scores(self.report["states"][0]["scores"])[metric]["value"]

    def value(self, metric: str) -> float | None:
        return self.costs[metric] if metric in self.costs else self.scores.get(metric, {"value": None})["value"]


@dataclass
class Setting:
    """Runs that differ only by seed."""

    options: dict
    runs: list[FinishedRun]

    @property
    def label(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.options.items()) or "all"

    def values(self, metric: str) -> list[float]:
        """The score of every run; empty if one has none, because a failed seed must not be averaged away."""
        values = [run.value(metric) for run in self.runs]
        return [] if None in values else values

    def values_by_seed(self, metric: str) -> dict[int, float]:
        return {run.options.get("seed"): value for run, value in zip(self.runs, self.values(metric), strict=False)}

    def mean(self, metric: str) -> float | None:
        values = self.values(metric)
        return sum(values) / len(values) if values else None

    def base_value(self, metric: str) -> float:
        """The base model's score."""
        return self.runs[0].base_value(metric)

    def std(self, metric: str) -> float | None:
        """Standard deviation over seeds."""
        values = self.values(metric)
        return float(torch.tensor(values, dtype=torch.double).std()) if len(values) > 1 else None

    def per_image_means(self, metric: str) -> torch.Tensor | None:
        """Every image's score averaged over runs, `[images]`; None without per-image scores, or if their numbers differ."""
        scores = [run.scores.get(metric, {}).get("per_image") for run in self.runs]
        if None in scores or len({len(values) for values in scores}) != 1:
            return None
        rows = torch.tensor([[torch.nan if v is None else v for v in values] for values in scores], dtype=torch.double)
        return rows.nanmean(0)


def read_finished_runs(folders: list[Path]) -> list[FinishedRun]:
    """Read the runs, each with the evaluation that is like those of the others, where there is one."""
    runs = [read_finished_run(folder) for folder in folders]
    for run, report in zip(runs, choose_comparable_evaluations([run.reports for run in runs]), strict=True):
        run.report = report
    return runs


def read_finished_run(folder: Path) -> FinishedRun:
    """Read `run.json` and the evaluations; raises `ValueError` unless the run finished."""
    check_links(folder)
    record = read_record(folder)
    if record["state"] != "finished":
        raise ValueError(f"{folder}: run not finished (state: {record['state']})")
    check_structure(record, dict.fromkeys(FINISHED_KEYS, object), str(folder / RECORD_FILE))
    nested = dict(
        w.split("=", 1) for w in record["command"] if "=" in w and "." in w.split("=")[0] and not w.startswith("hydra")
    )
    costs = {
        "trainable": sum(record["trainable"].values()),
        "seconds": record["seconds"],
        "s/it": record["seconds_per_step"],
        "memory GB": record["last"].get("memory_gb"),
        "file MB": record["result_mb"],
        "validation/loss": record["validation_loss"][-1],
    }
    reports = read_evaluations(folder)
    facts = [record.get("digests", {}).get("data"), record.get("resolution"), record.get("prediction_type")]
    facts += [record["options"].get("validation_split"), record.get("choices", {}).get("objective")]
    return FinishedRun(
        folder,
        record["options"] | nested,
        costs,
        record["validation_loss"][0],
        record["device"],
        choose_main_evaluation(reports),
        reports,
        json.dumps(facts),
    )


def describe_outdated_scores(runs: list[FinishedRun]) -> list[str]:
    """A line for each run whose compared scores are those of an earlier result."""
    return [
        f"{run.folder}: scores of step {run.report['outdated_step']}, before training was resumed; evaluate it again"
        for run in runs
        if run.report and is_outdated(run.report)
    ]


def group_by_setting(runs: list[FinishedRun]) -> list[Setting]:
    """Group runs by the options that differ, seeds aside, in the order of the runs."""
    keys = list(
        dict.fromkeys([*GROUP_OPTIONS, *[key for run in runs for key in run.options if key not in IGNORED_OPTIONS]])
    )
    varying = [key for key in keys if len({str(run.options.get(key)) for run in runs}) > 1]
    if "method" in varying:  # an option of one method with a single value is implied by the method
        varying = [key for key in varying if all(key in run.options for run in runs) or varies_within_method(key, runs)]
    varying = [key for key in varying if not follows_earlier_option(key, varying, runs)]
    settings: dict[str, Setting] = {}
    for run in runs:
        options = {key: run.options[key] for key in varying if key in run.options}
        settings.setdefault(str(options), Setting(options, [])).runs.append(run)
    return list(settings.values())


def varies_within_method(key: str, runs: list[FinishedRun]) -> bool:
    """Whether an option has several values within one method."""
    values_by_method: dict[str, set] = {}
    for run in runs:
        values_by_method.setdefault(run.options["method"], set()).add(str(run.options.get(key)))
    return any(len(values) > 1 for values in values_by_method.values())


def follows_earlier_option(key: str, varying: list[str], runs: list[FinishedRun]) -> bool:
    """Whether an option always equals an earlier one, as text_encoder_lr equals lr."""
    earlier = varying[: varying.index(key)]
    return any(all(run.options.get(key) == run.options.get(other) for run in runs) for other in earlier)


def comparable_metrics(runs: list[FinishedRun]) -> dict[str, bool]:
    """Scores that all runs have, with whether higher is better: none of different evaluations, no loss of different data."""
    metrics = metric_info(runs[0]) if len({run.evaluation_key for run in runs}) == 1 else {}
    common = {
        name: info["higher_is_better"] for name, info in metrics.items() if all(name in run.scores for run in runs)
    }
    return common | ({VALIDATION_LOSS: False} if len({run.loss_key for run in runs}) == 1 else {})


def default_metric(runs: list[FinishedRun]) -> str | None:
    """The first combined score such as "style and digit", else the first score, else the validation loss, if comparable."""
    names = [name for name in comparable_metrics(runs) if " and " in name] or list(comparable_metrics(runs))
    return next(iter(names), None)


def table_columns(runs: list[FinishedRun]) -> dict[str, str]:
    """Number formats of the table's scores and costs."""
    info = metric_info(runs[0])
    return {name: info[name]["number_format"] for name in comparable_metrics(runs) if name in info} | COST_FORMATS


def metric_info(run: FinishedRun) -> dict[str, dict]:
    """The evaluation's description of each score: number format, whether higher is better."""
    return flatten_scores(run.report["metrics"]) if run.report else {}
