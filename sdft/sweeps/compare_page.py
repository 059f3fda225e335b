"""Render `compare.html`: verdict, table, plots by option and cost, and the same prompts and seeds across settings."""

from pathlib import Path

from sdft.evaluation.plots.svg_charts import plot_lines_with_spread, plot_pareto_scatter
from sdft.evaluation.plots.templates import get_jinja_environment
from sdft.evaluation.report_images import encode_data_uri
from sdft.evaluation.statistics import format_score, get_result_state
from sdft.evaluation.variant_images import BASE_IMAGE_CACHE
from sdft.models.image_cache import format_image_name
from sdft.runs.files import atomic_write
from sdft.sweeps.results import FinishedRun, Setting, comparable_metrics, describe_outdated_scores, table_columns

MAX_PROMPTS, MAX_SCORES = 6, 7  # prompts of the sample grid, plots per option


def write_compare_page(
    settings: list[Setting], runs: list[FinishedRun], metric: str | None, verdict: list[str], folder: Path
) -> None:
    """Write `folder/compare.html`; `verdict` are the lines of `recommend_setting`. `metric` None ranks and plots nothing."""
    formats = table_columns(runs)
    context = {
        "title": f"{len(settings)} settings, {len(runs)} runs",
        "metric": metric,
        "up": comparable_metrics(runs).get(metric),
        "verdict": [line.split(None, 1) for line in verdict],
        "names": list(formats),
        "rows": [
            {
                "label": setting.label,
                "seeds": len(setting.runs),
                "cells": [format_cell(setting, name, formats[name]) for name in formats],
                "best": any(line.startswith(f"best       {setting.label}:") for line in verdict),
                "cheapest": any(line.startswith(f"cheapest   {setting.label}:") for line in verdict),
            }
            for setting in settings
        ],
        "option_plots": plot_by_option(settings, runs, metric) if metric else [],
        "cost_plots": [
            plot_pareto_scatter(
                cost_score_points(settings, name, metric), name, metric, comparable_metrics(runs)[metric], log
            )
            for name, log in (("trainable", True), ("seconds", False))
            if metric and any(None not in (s.mean(name), s.mean(metric)) for s in settings)
        ],
        "grid": build_sample_grid(settings),
        "outdated": describe_outdated_scores(runs),
        "folders": [str(run.folder) for run in runs],
        "device": ", ".join(sorted({run.device for run in runs})),
    }
    with atomic_write(folder / "compare.html") as file:
        file.write_text(get_jinja_environment().get_template("compare.html").render(context), encoding="utf-8")


def cost_score_points(settings: list[Setting], name: str, metric: str) -> dict[str, tuple[float, float]]:
    """Cost and score of the settings that have both."""
    points = {setting.label: (setting.mean(name), setting.mean(metric)) for setting in settings}
    return {label: point for label, point in points.items() if None not in point}


def format_cell(setting: Setting, name: str, number_format: str) -> dict[str, str]:
    std = setting.std(name)
    return {
        "value": format_score(setting.mean(name), number_format),
        "std": "" if std is None else f"± {format_score(std, number_format)}",
    }


def plot_by_option(settings: list[Setting], runs: list[FinishedRun], metric: str) -> list[dict[str, str]]:
    """One row of plots per numeric option: `metric` first, then other scores; one line per combination of the other options.

    Settings without the option, such as those of another method, are skipped.
    """
    keys = dict.fromkeys(option for setting in settings for option in setting.options)
    metrics = comparable_metrics(runs)
    names = [metric, *[name for name in metrics if name != metric and "/" not in name][: MAX_SCORES - 1]]
    plots = []
    for option in keys:
        numeric = sorted(
            (s for s in settings if parse_number(s.options.get(option)) is not None),
            key=lambda s: parse_number(s.options[option]),
        )
        if len({parse_number(s.options[option]) for s in numeric}) < 2:
            continue
        panels = {}
        for name in names:
            lines: dict[str, list] = {}
            for setting in numeric:
                others = " ".join(f"{key}={value}" for key, value in setting.options.items() if key != option)
                if setting.mean(name) is not None:
                    lines.setdefault(others, []).append(
                        (parse_number(setting.options[option]), setting.mean(name), setting.values(name))
                    )
            panels[f"{name} {'↑' if metrics[name] else '↓'}"] = lines
        plots.append({"option": option, "plot": plot_lines_with_spread(panels, option)})
    return plots


def parse_number(value) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def build_sample_grid(settings: list[Setting]) -> dict | None:
    """Images of the first seed of some prompts, the base's row first, then one row per setting.

    None unless all evaluations used the same prompts.
    """
    first_runs = [setting.runs[0] for setting in settings]
    reports = [run.report for run in first_runs]
    if None in reports or any(report["groups"] != reports[0]["groups"] for report in reports):
        return None
    seed = reports[0]["sampling"]["seed"]
    prompts = [prompt for group in reports[0]["groups"].values() for prompt in group][:MAX_PROMPTS]
    states = [("base", first_runs[0], reports[0]["states"][0])]
    states += [(s.label, run, get_result_state(run.report)) for s, run in zip(settings, first_runs, strict=True)]
    rows = []
    for label, run, state in states:
        folder = find_image_folder(run, state)
        files = [folder / format_image_name(prompt, seed) for prompt in prompts]
        if any(file.is_file() for file in files):
            images = [encode_data_uri(file) if file.is_file() else None for file in files]
            rows.append({"label": label, "images": images})
    return {"prompts": prompts, "rows": rows} if rows else None


def find_image_folder(run: FinishedRun, state: dict) -> Path:
    """The folder with a state's images: in the run, or in a cache of the base's images."""
    folder = run.report["path"] / state["image_folder"]
    is_cache = folder.resolve().parent.parts[-len(BASE_IMAGE_CACHE.parts) :] == BASE_IMAGE_CACHE.parts
    if not is_cache and not folder.resolve().is_relative_to(run.folder.resolve()):
        raise ValueError(
            f"{run.report['path']}: image_folder {state['image_folder'][:60]} is elsewhere; the file was edited"
        )
    return folder
