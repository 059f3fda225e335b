"""`report.html`: everything an evaluation found on one page that needs nothing else, neither files nor network."""

import shlex
from pathlib import Path

from sdft.evaluation.evaluator import Evaluator
from sdft.evaluation.plots.svg_charts import plot_small_multiples
from sdft.evaluation.plots.templates import get_jinja_environment
from sdft.evaluation.report_images import (
    GROUP_TITLES,
    MAX_IMAGES_PER_PROMPT,
    ImageFiles,
    build_image_group,
    build_timeline,
    build_training_section,
    encode_data_uri,
    find_nearest_pairs,
)
from sdft.evaluation.statistics import format_score, format_score_name
from sdft.evaluation.variants import BEST
from sdft.runs.files import atomic_write, read_json

MAX_TILE_SIZE, MIN_TILE_SIZE, PAGE_WIDTH = 124, 72, 1020  # pixels of a picture on the page, and of a row of them
BAR_RANGE = (12, 158)  # from where to where the marks of a score lie


def write_report(folder: Path, report: dict, exam: Evaluator, files: ImageFiles) -> None:
    """Write `folder/report.html` for a report that `scores.json` holds, with the pictures of every state by group."""
    run = folder.parent
    frames, entries = build_timeline(folder, report, files)
    strengths = plot_adapter_scales(report)
    pairs = find_nearest_pairs(report, exam, files)
    loss = run / "loss.png"
    parts = {
        "scores": True,
        "pictures": True,
        "strength": strengths,
        "timeline": frames,
        "copies": pairs,
        "loss": loss.is_file(),
        "provenance": True,
    }
    names = ("Scores", "Pictures", "Strength", "On the way", "Nearest training pictures", "Loss", "How it was made")
    context = {
        "title": f"{report['run']}: {report['states'][-1]['label']} against {report['states'][0]['label']}",
        "subtitle": format_subtitle(report),
        "sections": [(key, name) for (key, there), name in zip(parts.items(), names, strict=True) if there],
        "labels": [state["label"] for state in report["states"]],
        "last": report["states"][-1]["label"],
        "scores": [build_score_group(report, group) for group in report["groups"]],
        "missing": list(report["missing"].items()),
        "pictures": [build_image_group(report, group, files) for group in report["groups"]],
        "images": report["images"],
        "shown_images": min(MAX_IMAGES_PER_PROMPT, report["images"]),
        "training": build_training_section(exam),
        "strengths": strengths,
        "frames": frames,
        "timeline": plot_scores(report, entries, [entry["step"] for entry in entries], "step") if entries else "",
        "timeline_note": "Drawn and scored in training, with other seeds than the scores above."
        if frames and not any(state["step"] for state in report["states"])
        else "The checkpoints that were asked for.",
        "pairs": pairs,
        "pairs_note": f"Of what {report['states'][-1]['label']} drew, the pictures that are nearest to one it was trained on: "
        "left generated, right the training picture, with their cosine.",
        "loss": encode_data_uri(loss, largest=1200) if loss.is_file() else None,
        "facts": collect_provenance(run, report),
        "config": (run / "config.yaml").read_text(encoding="utf-8") if (run / "config.yaml").is_file() else None,
        "tile": compute_tile_size(len(report["states"]), min(MAX_IMAGES_PER_PROMPT, report["images"])),
    }
    page = get_jinja_environment().get_template("report.html").render(context)
    with atomic_write(folder / "report.html") as file:
        file.write_text(page, encoding="utf-8")


def compute_tile_size(states: int, images: int) -> int:
    """Pixels of a picture, so that all states of a prompt stand beside each other where they can."""
    return min(MAX_TILE_SIZE, max(MIN_TILE_SIZE, (PAGE_WIDTH - 18 * (states - 1)) // (states * images) - 4))


def format_subtitle(report: dict) -> str:
    drawn = report["sampling"]
    scorers = ", ".join(f"{key} {name}" for key, name in report["scorers"].items())
    more = f" · {drawn['scheduler']}" if drawn.get("scheduler") else ""
    more += f" · away from “{drawn['negative_prompt']}”" if drawn.get("negative_prompt") else ""
    return (
        f"{sum(map(len, report['groups'].values()))} prompts × {report['images']} images · {drawn['steps']} steps · "
        f"guidance {drawn['guidance_scale']:g}{more} · seeds from {drawn['seed']} · scorers: {scorers}"
    )


def build_score_group(report: dict, group: str) -> dict:
    rows = []
    for name, told in report["metrics"][group].items():
        number_format, scores = told["number_format"], [state["scores"][group][name] for state in report["states"]]
        gain = report["states"][-1]["difference"].get(group, {}).get(name)
        real = report["reference"][group].get(name)
        rows.append(
            {
                "name": name,
                "what": told["what"],
                "up": told["higher_is_better"],
                "cells": [
                    {
                        "value": format_score(score["value"], number_format),
                        "note": format_score_note(score, number_format),
                    }
                    for score in scores
                ],
                "change": format_signed(gain["value"], number_format) if gain else "",
                "change_range": format_interval(gain, number_format, format_signed) if gain else "",
                "verdict": classify_change(gain, told, scores[-1], real),
                "real": format_score(real, number_format, ""),
                "bar": compute_bar_positions(scores[0], scores[-1], real),
            }
        )
    return {"title": f"{GROUP_TITLES[group]} ({group})", "rows": rows}


def format_score_note(score: dict, number_format: str) -> str:
    """The interval, and how many pictures have a value when not all have."""
    few = f"{score['count']} of {score['of']}" if score.get("count", 0) < score.get("of", 0) else ""
    return " · ".join(filter(None, [format_interval(score, number_format, format_score), few]))


def format_interval(told: dict, number_format: str, write) -> str:
    return (
        "" if told.get("low") is None else f"{write(told['low'], number_format)} – {write(told['high'], number_format)}"
    )


def format_signed(value: float | None, number_format: str) -> str:
    return "–" if value is None else ("+" if value > 0 else "") + number_format.format(value)


def classify_change(gain: dict | None, told: dict, score: dict, real: float | None) -> str:
    """better or worse when the interval of the change leaves out zero; of some, when that of the score leaves out the real."""
    if not gain or gain["low"] is None:
        return "unclear"
    up = told["higher_is_better"]
    if told["against"] == "real" and real is not None:
        return "worse" if (score["high"] < real if up else score["low"] > real) else "unclear"
    if gain["low"] <= 0 <= gain["high"]:
        return "unclear"
    return "better" if (gain["value"] > 0) == up else "worse"


def compute_bar_positions(base: dict, tuned: dict, real: float | None) -> dict[str, float | None]:
    """Where the marks lie, between the smallest and the largest of them."""
    marks = {
        "base": base["value"],
        "tuned": tuned["value"],
        "real": real,
        "low": tuned.get("low"),
        "high": tuned.get("high"),
    }
    there = [value for value in marks.values() if value is not None]
    if not there:
        return marks
    low, high = min(there), max(there)
    place = lambda value: (
        BAR_RANGE[0] + (BAR_RANGE[1] - BAR_RANGE[0]) * ((value - low) / (high - low) if high > low else 0.5)
    )  # noqa: E731
    return {key: None if value is None else round(place(value), 1) for key, value in marks.items()}


def plot_adapter_scales(report: dict) -> str:
    """Scores against the strength of the adapter, where several were asked for."""
    of_one = [state for state in report["states"][1:] if state["step"] is None and state["label"] != BEST]
    if len(of_one) < 2:
        return ""
    entries = [report["states"][0], *sorted(of_one, key=lambda state: state["scale"])]
    return plot_scores(report, entries, [0.0, *[state["scale"] for state in entries[1:]]], "strength")


def plot_scores(report: dict, entries: list[dict], places: list[float], axis: str) -> str:
    panels = {}
    for group, metrics in report["metrics"].items():
        for name, told in metrics.items():
            scores = [entry["scores"].get(group, {}).get(name, {"value": None}) for entry in entries]
            title = f"{format_score_name(group, name)} {'↑' if told['higher_is_better'] else '↓'}"
            same = all(entry.get("groups", report["groups"]) == report["groups"] for entry in entries)
            panels[title] = (scores, report["reference"][group].get(name) if same else None)
    return plot_small_multiples(panels, places, axis)


def collect_provenance(run: Path, report: dict) -> list[tuple[str, str]]:
    """What the run says of itself, as far as there is one."""
    found = []
    if record := read_json(run / "run.json"):
        command, batch = shlex.join(["python", *record["command"]]), record["batch"]
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        steps = f"{record['steps']} of batch {batch['size']} × {batch['accumulate']} × {batch['processes']}"
        found = [("command", command), ("started", record["started"]), ("commit", record["commit"] or "unknown")]
        found += [("on", record["device"]), ("steps", steps), ("seed", record["seed"]), ("versions", versions)]
        if best := record.get("best"):
            found.append(("best", f"step {best['step']}: {best['metric']} {best['value']:.4f}"))
    return [*found, ("scores", "scores.json beside this page, schema " + str(report["schema"]))]
