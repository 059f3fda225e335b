"""Compare finished runs: sdft compare FOLDER…   Scores and costs per setting, the best and the cheapest sufficient one."""

import csv
from pathlib import Path

import torch

from sdft.evaluation.statistics import bootstrap_interval, format_score, orient_score
from sdft.runs.terminal import print_text
from sdft.sweeps.compare_page import write_compare_page
from sdft.sweeps.results import (
    COST_FORMATS,
    FinishedRun,
    Setting,
    comparable_metrics,
    default_metric,
    describe_outdated_scores,
    group_by_setting,
    read_finished_runs,
    table_columns,
)

FORMULA_MARKS = ("=", "+", "-", "@", "\t", "\r")  # first letters of a formula in a spreadsheet
MAX_LABEL_LENGTH = 60  # of a setting in the table; longer ones are listed below it
MIN_GAIN_FRACTION = 0.9  # of the best setting's gain over the base, at the 95 % lower bound


def compare_runs(
    folders: list[Path], folder: Path, metric: str | None = None, preferred: str | None = None
) -> list[Setting]:
    """Print a table of finished runs and the verdict; write `folder/table.csv` and `folder/compare.html`.

    Settings are ranked by `metric`; without one by `preferred` if the runs have it, else by the default metric.
    """
    runs = read_finished_runs(folders)
    if not runs:
        return []
    settings = group_by_setting(runs)
    metric = metric or choose_metric(runs, preferred)
    if metric is not None and metric not in comparable_metrics(runs):
        accepted = ", ".join(comparable_metrics(runs)) or "none; evaluate all runs with the same options"
        raise ValueError(f"metric={metric}: not comparable between these runs; choose {accepted}")
    if len({run.evaluation_key for run in runs}) > 1:
        print_text("scores     not compared: the evaluations used different prompts, images, seeds or metrics")
    if len({run.loss_key for run in runs}) > 1:
        print_text("loss       not compared: the runs have different data, resolutions or objectives")
    for line in describe_outdated_scores(runs):
        print_text(f"outdated   {line}")
    write_runs_table(runs, folder / "table.csv")
    print_text(*format_settings_table(settings, runs))
    verdict = recommend_setting(settings, metric) if metric else []
    devices = ", ".join(sorted({run.device for run in runs}))
    print_text(f"device     {devices}; s/it without the first step", *verdict)
    write_compare_page(settings, runs, metric, verdict, folder)
    print_text(f"table      {folder / 'table.csv'}   {folder / 'compare.html'}")
    return settings


def choose_metric(runs: list[FinishedRun], preferred: str | None = None) -> str | None:
    """The score to rank settings by: `preferred` if the runs have it, else the default metric; None if nothing is comparable."""
    return preferred if preferred in comparable_metrics(runs) else default_metric(runs)


def find_best_setting(settings: list[Setting], metric: str) -> Setting | None:
    """The best of the settings whose runs all have the score."""
    scored = [setting for setting in settings if setting.mean(metric) is not None]
    higher_is_better = comparable_metrics([run for setting in settings for run in setting.runs])[metric]
    return max(scored, key=lambda setting: orient_score(setting.mean(metric), higher_is_better), default=None)


def recommend_setting(settings: list[Setting], metric: str) -> list[str]:
    """Return lines that name the best setting and the cheapest one that keeps most of its gain over the base.

    A cheaper setting qualifies when at least `MIN_GAIN_FRACTION` of the gain is left both at the lower end of the 95 %
    interval of the paired difference (same prompts and image seeds) and in every training seed. Without an interval none does.
    """
    scored = [setting for setting in settings if setting.mean(metric) is not None]
    if len(scored) < 2:
        return []
    if len({format_score(setting.mean(metric), "{:.4f}") for setting in scored}) == 1:
        return [f"equal      all settings: {metric} {format_mean(scored[0], metric)}; no setting is best"]
    higher_is_better = comparable_metrics([run for setting in settings for run in setting.runs])[metric]
    best = find_best_setting(settings, metric)
    seeds = min(len(setting.runs) for setting in scored)
    lines = [
        f"best       {best.label}: {metric} {format_mean(best, metric)}, {seeds} seed{'s' * (seeds > 1)} per setting"
    ]
    base = best.base_value(metric)
    cheaper = [setting for setting in scored if setting is not best and training_cost(setting) < training_cost(best)]
    cheaper.sort(key=training_cost)
    gain = 0 if base is None else (best.mean(metric) - base) * (1 if higher_is_better else -1)
    if gain <= 0 or not cheaper:
        return lines
    fractions = {setting.label: gain_fraction(setting, best, metric, gain, higher_is_better) for setting in cheaper}
    return [*lines, f"cheapest   {describe_cheapest(best, cheaper, fractions)}"]


def describe_cheapest(best: Setting, cheaper: list[Setting], fractions: dict[str, tuple[float, float | None]]) -> str:
    """Name the first of the `cheaper` settings, sorted by cost, that keeps enough of the gain; else the closest one."""
    for setting in cheaper:
        mean, lower_bound = fractions[setting.label]
        if lower_bound is not None and lower_bound >= MIN_GAIN_FRACTION:
            ratio = best.mean("trainable") / max(1, setting.mean("trainable"))
            saving = f"{ratio:.3g}x fewer trainable parameters" if ratio > 1.01 else "less training time"
            return f"{setting.label}: {saving}, {format_gain(mean, 'of the gain', lower_bound)}"
    bounded = {label: fraction for label, fraction in fractions.items() if fraction[1] is not None}
    if not bounded:
        return (
            "undetermined: no confidence interval; run several seeds per setting, or set metrics=… for per-image scores"
        )
    closest = max(bounded, key=lambda label: bounded[label][1])
    required = f"no cheaper setting keeps {format_percent(MIN_GAIN_FRACTION)} of the gain at the 95 % lower bound"
    return f"none: {required}; closest is {closest} with {format_gain(bounded[closest][0], '', bounded[closest][1])}"


def gain_fraction(
    setting: Setting, best: Setting, metric: str, gain: float, higher_is_better: bool
) -> tuple[float, float | None]:
    """The fraction of the best's gain over the base that a setting keeps, and its 95 % lower bound."""
    sign = 1 if higher_is_better else -1
    mean = 1 + sign * (setting.mean(metric) - best.mean(metric)) / gain
    interval = difference_interval(setting, best, metric)
    if interval is None:
        return mean, None
    lowest = min(sign * end for end in interval)
    differences = [sign * difference for difference in seed_differences(setting, best, metric)]
    return mean, max(0.0, 1 + min([lowest, *differences]) / gain)


def seed_differences(one: Setting, other: Setting, metric: str) -> list[float]:
    """`one` - `other` for every training seed that both have."""
    values, other_values = one.values_by_seed(metric), other.values_by_seed(metric)
    return [values[seed] - other_values[seed] for seed in values if seed in other_values]


def training_cost(setting: Setting) -> tuple[float, float]:
    return setting.mean("trainable"), round(setting.mean("seconds"), -1)


def format_mean(setting: Setting, metric: str) -> str:
    std = setting.std(metric)
    return f"{setting.mean(metric):.4f}" + (f" ± {std:.4f}" if std is not None else "")


def format_percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def format_gain(mean: float, unit: str, lower_bound: float) -> str:
    return " ".join(filter(None, (format_percent(mean), unit, f"(95 % lower bound {format_percent(lower_bound)})")))


def difference_interval(one: Setting, other: Setting, metric: str) -> tuple[float, float] | None:
    """The 95 % interval of `one` - `other`: over images of the same prompt and seed, else over training seeds."""
    values, other_values = one.per_image_means(metric), other.per_image_means(metric)
    if values is not None and other_values is not None and len(values) == len(other_values):
        return bootstrap_interval(values - other_values, one.runs[0].report["images"])
    pairs = seed_differences(one, other, metric)
    return bootstrap_interval(torch.tensor(pairs), 1 if len(pairs) >= 5 else len(pairs)) if len(pairs) > 1 else None


def format_settings_table(settings: list[Setting], runs: list[FinishedRun], max_scores: int = 5) -> list[str]:
    """One line per setting: the first scores and the costs, mean ± standard deviation over seeds."""
    formats = table_columns(runs)
    scores = [name for name in formats if name not in COST_FORMATS and "/" not in name][:max_scores]
    columns = scores + list(COST_FORMATS)
    cells = [["", *columns]]
    is_long = max(len(setting.label) for setting in settings) > MAX_LABEL_LENGTH
    labels = [f"setting {number}" if is_long else setting.label for number, setting in enumerate(settings, 1)]
    for label, setting in zip(labels, settings, strict=True):
        row = [label]
        for name in columns:
            value, std = format_score(setting.mean(name), formats[name]), setting.std(name)
            has_std = std is not None and name not in COST_FORMATS
            row.append(value + (f" ± {format_score(std, formats[name])}" if has_std else ""))
        cells.append(row)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    justify = [str.ljust, *[str.rjust] * len(columns)]
    lines = ["  ".join(pad(c, w) for pad, c, w in zip(justify, row, widths, strict=True)) for row in cells]
    legend = [f"{label}: {setting.label}" for label, setting in zip(labels, settings, strict=True)] if is_long else []
    return lines + legend


def escape_cell(value):
    """Text that a spreadsheet would run as a formula, with an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_MARKS) else value


def write_runs_table(runs: list[FinishedRun], file: Path) -> None:
    """Write one CSV row per run, with all options, scores and costs."""
    options = list(dict.fromkeys(key for run in runs for key in run.options))
    names = [*dict.fromkeys(name for run in runs for name in run.scores), *COST_FORMATS]
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(map(escape_cell, ["folder", *options, *names]))
        for run in runs:
            row = [str(run.folder), *[run.options.get(o) for o in options], *[run.value(n) for n in names]]
            writer.writerow(map(escape_cell, row))
