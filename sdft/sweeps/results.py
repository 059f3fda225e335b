"""What runs leave for comparison: their words, costs and scores, by setting."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from sdft.evaluation.statistics import flatten_scores, get_result_state
from sdft.runs.files import read_json

COST_FORMATS = {  # of a run, with how a value is printed
    "trainable": "{:,.0f}",
    "seconds": "{:.1f}",
    "s/it": "{:.3f}",
    "memory GB": "{:.2f}",
    "file MB": "{:.2f}",
    "validation/loss": "{:.4f}",
}
IGNORED_OPTIONS = ("name", "seed", "sweep", "tags", "resume", "prompts")  # words that do not make a run another setting
GROUP_OPTIONS = ("method", "model", "data", "optimizer", "schedule", "precision", "strategy")  # named first
VALIDATION_LOSS = "validation/loss"
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
    """A finished run: its words, what it cost, and its evaluation, if it had one."""

    folder: Path
    options: dict
    costs: dict[str, float | None]
    loss: float  # of the base, at fixed noise
    device: str
    report: dict | None

    @property
    def scores(self) -> dict[str, dict]:
        """Those of the result, by name; of other groups than the prompts as `controls/drift`."""
        return flatten_scores(get_result_state(self.report)["scores"]) if self.report else {}

    @property
    def evaluation_key(self) -> str:
        """What an evaluation must share with others to be compared with them."""
        told = self.report or {}
        drawn = {key: value for key, value in told.get("sampling", {}).items() if key != "batch_size"}
        return json.dumps([told.get("scorers"), told.get("groups"), told.get("images"), drawn])

    def base_value(self, metric: str) -> float | None:
        """What the base has."""
        if metric == VALIDATION_LOSS:
            return self.loss
        return flatten_scores(self.report["states"][0]["scores"])[metric]["value"]

    def value(self, metric: str) -> float | None:
        return self.costs[metric] if metric in self.costs else self.scores.get(metric, {"value": None})["value"]


@dataclass
class Setting:
    """Runs that differ in nothing but their seed."""

    options: dict
    runs: list[FinishedRun]

    @property
    def label(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.options.items()) or "all"

    def values(self, metric: str) -> list[float]:
        """Of every run; none when one of them has none, for a seed that failed must not be averaged away."""
        values = [run.value(metric) for run in self.runs]
        return [] if None in values else values

    def values_by_seed(self, metric: str) -> dict[int, float]:
        return {run.options.get("seed"): value for run, value in zip(self.runs, self.values(metric), strict=False)}

    def mean(self, metric: str) -> float | None:
        values = self.values(metric)
        return sum(values) / len(values) if values else None

    def base_value(self, metric: str) -> float:
        """What the base has."""
        return self.runs[0].base_value(metric)

    def std(self, metric: str) -> float | None:
        """Standard deviation over seeds."""
        values = self.values(metric)
        return float(torch.tensor(values, dtype=torch.double).std()) if len(values) > 1 else None

    def per_image_means(self, metric: str) -> torch.Tensor | None:
        """The mean over runs of every picture's value; None of what has no value a picture, or of unlike evaluations."""
        found = [run.scores.get(metric, {}).get("each") for run in self.runs]
        if None in found or len({len(values) for values in found}) != 1:
            return None
        rows = torch.tensor([[torch.nan if v is None else v for v in values] for values in found], dtype=torch.double)
        return rows.nanmean(0)


def read_finished_run(folder: Path) -> FinishedRun:
    """A run folder, from its `run.json` and `evaluation/scores.json`."""
    record = read_json(folder / "run.json")
    if not record:
        raise ValueError(f"{folder}: not a run folder (no run.json)")
    if (state := record.get("state")) != "finished":
        raise ValueError(f"{folder}: did not finish ({state})")
    nested = dict(
        w.split("=", 1) for w in record["command"] if "=" in w and "." in w.split("=")[0] and not w.startswith("hydra")
    )
    costs = {
        "trainable": sum(record["trainable"].values()),
        "seconds": record["seconds"],
        "s/it": record["seconds_per_step"],
        "memory GB": record["last"]["memory_gb"],
        "file MB": record["result_mb"],
        "validation/loss": record["validation_loss"][1],
    }
    return FinishedRun(
        folder,
        record["options"] | nested,
        costs,
        record["validation_loss"][0],
        record["device"],
        read_json(folder / "evaluation" / "scores.json") or None,
    )


def group_by_setting(runs: list[FinishedRun]) -> list[Setting]:
    """By the words that differ, but for the seed's; in the order of the runs."""
    keys = list(
        dict.fromkeys([*GROUP_OPTIONS, *[key for run in runs for key in run.options if key not in IGNORED_OPTIONS]])
    )
    told = [key for key in keys if len({str(run.options.get(key)) for run in runs}) > 1]
    if "method" in told:  # a word that one method alone has, and has one value of, says no more than the method
        told = [key for key in told if all(key in run.options for run in runs) or varies_within_method(key, runs)]
    told = [key for key in told if not follows_earlier_option(key, told, runs)]
    found: dict[str, Setting] = {}
    for run in runs:
        words = {key: run.options[key] for key in told if key in run.options}
        found.setdefault(str(words), Setting(words, [])).runs.append(run)
    return list(found.values())


def varies_within_method(key: str, runs: list[FinishedRun]) -> bool:
    """Whether a word has several values within one method."""
    seen: dict[str, set] = {}
    for run in runs:
        seen.setdefault(run.options["method"], set()).add(str(run.options.get(key)))
    return any(len(values) > 1 for values in seen.values())


def follows_earlier_option(key: str, told: list[str], runs: list[FinishedRun]) -> bool:
    """Whether a word only follows an earlier one, as text_encoder_lr follows lr."""
    before = told[: told.index(key)]
    return any(all(run.options.get(key) == run.options.get(other) for run in runs) for other in before)


def comparable_metrics(runs: list[FinishedRun]) -> dict[str, bool]:
    """Scores that all runs have, of evaluations that asked the same, and whether higher is better."""
    told = metric_info(runs[0]) if len({run.evaluation_key for run in runs}) == 1 else {}
    there = {name: fact["higher_is_better"] for name, fact in told.items() if all(name in run.scores for run in runs)}
    return there | {VALIDATION_LOSS: False}


def default_metric(runs: list[FinishedRun]) -> str:
    """The first score of the evaluations, which is what was asked most of all; else the validation loss."""
    named = [name for name in comparable_metrics(runs) if " and " in name] or list(comparable_metrics(runs))
    return named[0]


def table_columns(runs: list[FinishedRun]) -> dict[str, str]:
    """Scores and costs that are shown, with how a value is printed."""
    told = metric_info(runs[0])
    return {name: told[name]["number_format"] for name in comparable_metrics(runs) if name in told} | COST_FORMATS


def metric_info(run: FinishedRun) -> dict[str, dict]:
    """What the run's evaluation says of each score."""
    return flatten_scores(run.report["metrics"]) if run.report else {}
