"""`compare.html`: what every setting reached: verdict, table, plots, and the same prompt and seed across settings."""

from pathlib import Path

from sdft.evaluation.plots.svg_charts import plot_lines_with_spread, plot_pareto_scatter
from sdft.evaluation.plots.templates import get_jinja_environment
from sdft.evaluation.report_images import encode_data_uri
from sdft.evaluation.statistics import format_score, get_result_state
from sdft.models.image_cache import format_image_name
from sdft.runs.files import atomic_write
from sdft.sweeps.results import FinishedRun, Setting, comparable_metrics, table_columns

MAX_PROMPTS, MAX_SCORES = 6, 7  # shown at most: prompts of the grid, scores against a option


def write_compare_page(
    settings: list[Setting], runs: list[FinishedRun], metric: str, verdict: list[str], place: Path
) -> None:
    """Write `place/compare.html`; `verdict` are the lines that the terminal tells."""
    told = table_columns(runs)
    context = {
        "title": f"{len(settings)} settings, {len(runs)} runs",
        "metric": metric,
        "up": comparable_metrics(runs)[metric],
        "verdict": [line.split(None, 1) for line in verdict],
        "names": list(told),
        "rows": [
            {
                "label": setting.label,
                "seeds": len(setting.runs),
                "cells": [format_cell(setting, name, told[name]) for name in told],
                "best": bool(verdict) and verdict[0].split(None, 1)[1].startswith(f"{setting.label}:"),
                "cheapest": any(line.startswith(f"cheapest   {setting.label}:") for line in verdict),
            }
            for setting in settings
        ],
        "against": plot_by_option(settings, runs, metric),
        "costs": [
            plot_pareto_scatter(
                cost_score_points(settings, name, metric), name, metric, comparable_metrics(runs)[metric], log
            )
            for name, log in (("trainable", True), ("seconds", False))
            if any(None not in (s.mean(name), s.mean(metric)) for s in settings)
        ],
        "grid": build_sample_grid(settings),
        "folders": [str(run.folder) for run in runs],
        "device": ", ".join(sorted({run.device for run in runs})),
    }
    with atomic_write(place / "compare.html") as file:
        file.write_text(get_jinja_environment().get_template("compare.html").render(context), encoding="utf-8")


def cost_score_points(settings: list[Setting], name: str, metric: str) -> dict[str, tuple[float, float]]:
    """Cost and score of the settings that have both."""
    found = {setting.label: (setting.mean(name), setting.mean(metric)) for setting in settings}
    return {label: point for label, point in found.items() if None not in point}


def format_cell(setting: Setting, name: str, form: str) -> dict[str, str]:
    spread = setting.std(name)
    return {
        "value": format_score(setting.mean(name), form),
        "spread": "" if spread is None else f"± {format_score(spread, form)}",
    }


def plot_by_option(settings: list[Setting], runs: list[FinishedRun], metric: str) -> list[dict[str, str]]:
    """A row of plots for each option that takes numbers: the metric first, then other scores; a line for each rest of the words.

    Settings without the option, such as those of another method, are left out.
    """
    keys = dict.fromkeys(option for setting in settings for option in setting.options)
    there = comparable_metrics(runs)
    names = [metric, *[name for name in there if name != metric and "/" not in name][: MAX_SCORES - 1]]
    found = []
    for option in keys:
        those = sorted(
            (s for s in settings if parse_number(s.options.get(option)) is not None),
            key=lambda s: parse_number(s.options[option]),
        )
        if len({parse_number(s.options[option]) for s in those}) < 2:
            continue
        panels = {}
        for name in names:
            lines: dict[str, list] = {}
            for setting in those:
                rest = " ".join(f"{key}={value}" for key, value in setting.options.items() if key != option)
                if setting.mean(name) is not None:
                    lines.setdefault(rest, []).append(
                        (parse_number(setting.options[option]), setting.mean(name), setting.values(name))
                    )
            panels[f"{name} {'↑' if there[name] else '↓'}"] = lines
        found.append({"option": option, "plot": plot_lines_with_spread(panels, option)})
    return found


def parse_number(value) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def build_sample_grid(settings: list[Setting]) -> dict | None:
    """The first seed of some prompts, a row a setting, of evaluations that asked the same; the base's above."""
    firsts = [setting.runs[0] for setting in settings]
    reports = [run.report for run in firsts]
    if None in reports or any(report["groups"] != reports[0]["groups"] for report in reports):
        return None
    seed = reports[0]["sampling"]["seed"]
    prompts = [prompt for listed in reports[0]["groups"].values() for prompt in listed][:MAX_PROMPTS]
    rows = [("base", firsts[0], reports[0]["states"][0])]
    rows += [(s.label, run, get_result_state(run.report)) for s, run in zip(settings, firsts, strict=True)]
    found = []
    for label, run, state in rows:
        folder = run.folder / "evaluation" / state["pictures"]
        files = [folder / format_image_name(prompt, seed) for prompt in prompts]
        if any(file.is_file() for file in files):
            found.append(
                {"label": label, "images": [encode_data_uri(file) if file.is_file() else None for file in files]}
            )
    return {"prompts": prompts, "rows": found} if found else None
