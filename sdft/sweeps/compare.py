"""Runs side by side: sdft compare FOLDER…   What each setting learned, cost and reached, and which one is cheapest."""

import csv
import sys
from pathlib import Path

import torch

from sdft.evaluation.statistics import bootstrap_interval, format_score, orient_score
from sdft.runs.files import read_json
from sdft.sweeps.compare_page import write_compare_page
from sdft.sweeps.results import (
    COST_FORMATS,
    FinishedRun,
    Setting,
    comparable_metrics,
    default_metric,
    group_by_setting,
    read_finished_run,
    table_columns,
)

MIN_GAIN_FRACTION = 0.9  # of the gain


def compare_runs(
    folders: list[Path], place: Path, metric: str | None = None, preferred: str | None = None
) -> list[Setting]:
    """Print a table of finished runs and the verdict; write `place/table.csv` and `place/compare.html`.

    Settings are judged by `metric`; without one by `preferred`, if the runs have it, else by what their evaluation asks most.
    """
    runs = [read_finished_run(folder) for folder in folders]
    if not runs:
        return []
    settings = group_by_setting(runs)
    metric = metric or choose_metric(runs, preferred)
    if metric not in comparable_metrics(runs):
        raise ValueError(f"metric={metric}: these runs have {', '.join(comparable_metrics(runs))}")
    if len({run.evaluation_key for run in runs}) > 1:
        print("scores   are not compared: the evaluations asked different things, or judges, of the runs")
    write_runs_table(runs, place / "table.csv")
    print(format_settings_table(settings, runs))
    verdict = recommend_setting(settings, metric)
    print(
        "\n".join(
            [f"on       {', '.join(sorted({run.device for run in runs}))}; s/it without the first step", *verdict]
        )
    )
    write_compare_page(settings, runs, metric, verdict, place)
    print(f"table    {place / 'table.csv'}   {place / 'compare.html'}")
    return settings


def choose_metric(runs: list[FinishedRun], preferred: str | None = None) -> str:
    """The score that settings are judged by: `preferred`, if the runs have it, else what their evaluation asks most."""
    return preferred if preferred in comparable_metrics(runs) else default_metric(runs)


def find_best_setting(settings: list[Setting], metric: str) -> Setting | None:
    """The best of the settings whose every run has the score."""
    known = [setting for setting in settings if setting.mean(metric) is not None]
    up = comparable_metrics([run for setting in settings for run in setting.runs])[metric]
    return max(known, key=lambda setting: orient_score(setting.mean(metric), up), default=None)


def recommend_setting(settings: list[Setting], metric: str) -> list[str]:
    """Which setting is best, and which is the cheapest that surely keeps most of what the best gained over the base.

    Surely: the lower end of the 95 % interval of their difference, over the same prompts and image seeds, and the difference
    of each training seed, leave at least `KEPT` of the gain. With little to go on nothing is cheapest.
    """
    known = [setting for setting in settings if setting.mean(metric) is not None]
    if len(known) < 2:
        return []
    up = comparable_metrics([run for setting in settings for run in setting.runs])[metric]
    best = find_best_setting(settings, metric)
    seeds = min(len(setting.runs) for setting in known)
    lines = [f"best     {best.label}: {metric} {format_mean(best, metric)}, over {seeds} seed{'s' * (seeds > 1)} each"]
    base, cheaper = (
        best.base_value(metric),
        sorted((s for s in known if s is not best and training_cost(s) < training_cost(best)), key=training_cost),
    )
    gain = 0 if base is None else (best.mean(metric) - base) * (1 if up else -1)
    if gain <= 0 or not cheaper:
        return lines
    shares = {setting.label: gain_fraction(setting, best, metric, gain, up) for setting in cheaper}
    for setting in cheaper:
        mean, least = shares[setting.label]
        if least is not None and least >= MIN_GAIN_FRACTION:
            less = best.mean("trainable") / max(1, setting.mean("trainable"))
            what = f"trainable {less:.3g} times less" if less > 1.01 else "takes less time"
            lines.append(
                f"cheapest   {setting.label}: {format_mean(setting, metric)}; it {what} and keeps {mean:.0%} of the gain over the base "
                f"(surely {least:.0%})"
            )
            return lines
    if all(least is None for _, least in shares.values()):
        return [
            *lines,
            "cheapest   cannot be told: give each setting several seeds, or metrics=… for scores of every picture",
        ]
    near = max(shares, key=lambda label: shares[label][1] or 0)
    mean, least = shares[near]
    nearest = f"nearest is {near} with {mean:.0%} (surely {least:.0%})"
    return [*lines, f"cheapest   nothing cheaper surely keeps {MIN_GAIN_FRACTION:.0%} of the gain; {nearest}"]


def gain_fraction(setting: Setting, best: Setting, metric: str, gain: float, up: bool) -> tuple[float, float | None]:
    """The share of the best's gain over the base that a setting keeps, and the share that it surely keeps."""
    sign = 1 if up else -1
    mean = 1 + sign * (setting.mean(metric) - best.mean(metric)) / gain
    span = difference_interval(setting, best, metric)
    if span is None:
        return mean, None
    lowest = min(sign * end for end in span)
    seeds = [sign * difference for difference in seed_differences(setting, best, metric)]
    return mean, max(0.0, 1 + min([lowest, *seeds]) / gain)


def seed_differences(one: Setting, other: Setting, metric: str) -> list[float]:
    """`one` - `other` for every training seed that both have."""
    ours, theirs = one.values_by_seed(metric), other.values_by_seed(metric)
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def training_cost(setting: Setting) -> tuple[float, float]:
    return setting.mean("trainable"), round(setting.mean("seconds"), -1)


def format_mean(setting: Setting, metric: str) -> str:
    spread = setting.std(metric)
    return f"{setting.mean(metric):.4f}" + (f" ± {spread:.4f}" if spread is not None else "")


def difference_interval(one: Setting, other: Setting, metric: str) -> tuple[float, float] | None:
    """The interval of `one` - `other`: over pictures of the same prompt and seed, else over seeds."""
    ours, theirs = one.per_image_means(metric), other.per_image_means(metric)
    if ours is not None and theirs is not None and len(ours) == len(theirs):
        return bootstrap_interval(ours - theirs, one.runs[0].report["images"])
    pairs = seed_differences(one, other, metric)
    return bootstrap_interval(torch.tensor(pairs), 1 if len(pairs) >= 5 else len(pairs)) if len(pairs) > 1 else None


def format_settings_table(settings: list[Setting], runs: list[FinishedRun], most: int = 5) -> str:
    """A line a setting: the first scores and the costs, mean ± standard deviation over seeds."""
    all_of_them = table_columns(runs)
    chosen = [name for name in all_of_them if name not in COST_FORMATS and "/" not in name][:most] + list(COST_FORMATS)
    cells = [["", *chosen]]
    for setting in settings:
        row = [setting.label]
        for name in chosen:
            value, spread = format_score(setting.mean(name), all_of_them[name]), setting.std(name)
            row.append(
                value
                + (
                    f" ± {format_score(spread, all_of_them[name])}"
                    if spread is not None and name not in COST_FORMATS
                    else ""
                )
            )
        cells.append(row)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    sides = [str.ljust, *[str.rjust] * len(chosen)]
    return "\n".join("  ".join(side(c, w) for side, c, w in zip(sides, row, widths, strict=True)) for row in cells)


def write_runs_table(runs: list[FinishedRun], file: Path) -> None:
    """One row a run, with everything."""
    words = list(dict.fromkeys(key for run in runs for key in run.options))
    names = [*dict.fromkeys(name for run in runs for name in run.scores), *COST_FORMATS]
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["folder", *words, *names])
        for run in runs:
            writer.writerow([run.folder, *[run.options.get(w) for w in words], *[run.value(n) for n in names]])


def job_sort_key(file: Path) -> tuple[int, str]:
    """Jobs by their number, runs by their name."""
    name = file.parent.name
    return (int(name), "") if name.isdigit() else (0, name)


def main() -> None:
    """sdft compare FOLDER… [metric=CLIP-I]: a folder of runs, into itself, or several, into outputs/comparison/."""
    given = [word for word in sys.argv[1:] if "=" not in word]
    metric = next((word.removeprefix("metric=") for word in sys.argv[1:] if word.startswith("metric=")), None)
    folders = [Path(word) for word in given]
    runs = [
        file.parent
        for folder in folders
        for file in sorted(folder.glob("run.json")) or sorted(folder.glob("*/run.json"), key=job_sort_key)
    ]
    try:
        if not runs:
            raise ValueError(
                f"{' '.join(given) or 'no folder'}: no run.json there; give run folders, or a folder of them"
            )
        place = (
            folders[0] if len(folders) == 1 and not (folders[0] / "run.json").is_file() else Path("outputs/comparison")
        )
        if wrong := [word for word in sys.argv[1:] if "=" in word and not word.startswith("metric=")]:
            raise ValueError(f"{wrong[0]}: metric=NAME is the only word; the rest are folders")
        if empty := [str(folder) for folder in folders if not any(run.is_relative_to(folder) for run in runs)]:
            raise ValueError(f"{empty[0]}: no run.json there; give run folders, or a folder of them")
        states = {run: read_json(run / "run.json").get("state") for run in runs}
        for run, state in states.items():
            if state != "finished":
                print(f"left out {run}: {state}")
        finished = [run for run, state in states.items() if state == "finished"]
        if not finished:
            raise ValueError("no finished run among them")
        compare_runs(finished, place, metric)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
