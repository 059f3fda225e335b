"""`compare.html`: what every setting reached: verdict, table, plots, and the same prompt and seed across settings."""

from pathlib import Path

from sdft.evaluation.plots.svg_charts import lines_with_spread, scatter
from sdft.evaluation.plots.templates import environment
from sdft.evaluation.report_images import source_of
from sdft.evaluation.statistics import result_of, shown
from sdft.models.image_cache import name_of
from sdft.runs.files import whole
from sdft.sweeps.results import Run, Setting, columns, metrics

PROMPTS, SCORES = 6, 7  # shown at most: prompts of the grid, scores against a word


def write_comparison(settings: list[Setting], runs: list[Run], metric: str, verdict: list[str], place: Path) -> None:
    """Write `place/compare.html`; `verdict` are the lines that the terminal tells."""
    told = columns(runs)
    context = {
        "title": f"{len(settings)} settings, {len(runs)} runs",
        "metric": metric,
        "up": metrics(runs)[metric],
        "verdict": [line.split(None, 1) for line in verdict],
        "names": list(told),
        "rows": [
            {
                "label": setting.label,
                "seeds": len(setting.runs),
                "cells": [cell(setting, name, told[name]) for name in told],
                "best": bool(verdict) and verdict[0].split(None, 1)[1].startswith(f"{setting.label}:"),
                "enough": any(line.startswith(f"enough   {setting.label}:") for line in verdict),
            }
            for setting in settings
        ],
        "against": against_words(settings, runs, metric),
        "costs": [
            scatter(points(settings, name, metric), name, metric, metrics(runs)[metric], log)
            for name, log in (("learns", True), ("seconds", False))
            if any(None not in (s.mean(name), s.mean(metric)) for s in settings)
        ],
        "grid": grid(settings),
        "folders": [str(run.folder) for run in runs],
        "device": ", ".join(sorted({run.device for run in runs})),
    }
    with whole(place / "compare.html") as file:
        file.write_text(environment().get_template("compare.html").render(context), encoding="utf-8")


def points(settings: list[Setting], name: str, metric: str) -> dict[str, tuple[float, float]]:
    """Cost and score of the settings that have both."""
    found = {setting.label: (setting.mean(name), setting.mean(metric)) for setting in settings}
    return {label: point for label, point in found.items() if None not in point}


def cell(setting: Setting, name: str, form: str) -> dict[str, str]:
    spread = setting.spread(name)
    return {"value": shown(setting.mean(name), form), "spread": "" if spread is None else f"± {shown(spread, form)}"}


def against_words(settings: list[Setting], runs: list[Run], metric: str) -> list[dict[str, str]]:
    """A row of plots for each word that takes numbers: the metric first, then other scores; a line for each rest of the words.

    Settings without the word, such as those of another method, are left out.
    """
    keys = dict.fromkeys(word for setting in settings for word in setting.words)
    there = metrics(runs)
    names = [metric, *[name for name in there if name != metric and "/" not in name][: SCORES - 1]]
    found = []
    for word in keys:
        those = sorted(
            (s for s in settings if number(s.words.get(word)) is not None), key=lambda s: number(s.words[word])
        )
        if len({number(s.words[word]) for s in those}) < 2:
            continue
        panels = {}
        for name in names:
            lines: dict[str, list] = {}
            for setting in those:
                rest = " ".join(f"{key}={value}" for key, value in setting.words.items() if key != word)
                if setting.mean(name) is not None:
                    lines.setdefault(rest, []).append(
                        (number(setting.words[word]), setting.mean(name), setting.values(name))
                    )
            panels[f"{name} {'↑' if there[name] else '↓'}"] = lines
        found.append({"word": word, "plot": lines_with_spread(panels, word)})
    return found


def number(value) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def grid(settings: list[Setting]) -> dict | None:
    """The first seed of some prompts, a row a setting, of evaluations that asked the same; the base's above."""
    firsts = [setting.runs[0] for setting in settings]
    reports = [run.report for run in firsts]
    if None in reports or any(report["groups"] != reports[0]["groups"] for report in reports):
        return None
    seed = reports[0]["sampling"]["seed"]
    prompts = [prompt for listed in reports[0]["groups"].values() for prompt in listed][:PROMPTS]
    rows = [("base", firsts[0], reports[0]["states"][0])]
    rows += [(s.label, run, result_of(run.report)) for s, run in zip(settings, firsts, strict=True)]
    found = []
    for label, run, state in rows:
        folder = run.folder / "evaluation" / state["pictures"]
        files = [folder / name_of(prompt, seed) for prompt in prompts]
        if any(file.is_file() for file in files):
            found.append({"label": label, "images": [source_of(file) if file.is_file() else None for file in files]})
    return {"prompts": prompts, "rows": found} if found else None
