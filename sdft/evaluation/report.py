"""Self-contained `report.html` of an evaluation; needs neither other files nor network."""

from pathlib import Path

from sdft.evaluation.evaluator import Evaluator
from sdft.evaluation.plots.svg_charts import plot_small_multiples
from sdft.evaluation.plots.templates import get_jinja_environment
from sdft.evaluation.protocol import PromptGroup
from sdft.evaluation.report_images import (
    GROUP_TITLES,
    MAX_IMAGES_PER_PROMPT,
    ImageFiles,
    build_comparison_image,
    build_image_group,
    build_timeline,
    build_training_section,
    encode_data_uri,
    find_nearest_pairs,
)
from sdft.evaluation.statistics import format_score, format_score_name
from sdft.evaluation.variants import BEST
from sdft.models.sampling import Sampling
from sdft.runs.evaluations import classify_change
from sdft.runs.files import atomic_write
from sdft.runs.metadata import RECORD_FILE, format_command_line, read_data_report, read_record

MAX_TILE_SIZE, MIN_TILE_SIZE, PAGE_WIDTH = 124, 72, 1020  # pixels of an image, and of a row of images
BAR_RANGE = (12, 158)  # x coordinates of the marks of a score, in pixels


def write_report(folder: Path, history: Path, report: dict, evaluator: Evaluator, files: ImageFiles) -> None:
    """Write `folder/report.html` from the content of `scores.json` and the image files of every state by group.

    `history` is the folder with the evaluations during training.
    """
    run = folder.parent
    frames, entries = build_timeline(history, report, files)
    strengths = plot_adapter_scales(report)
    pairs = find_nearest_pairs(report, evaluator, files)
    loss = run / "loss.png"
    sections = {
        "scores": ("Scores", True),
        "images": ("Images", True),
        "strength": ("Adapter scale", strengths),
        "timeline": ("Intermediate evaluations", frames),
        "copies": ("Nearest training images", pairs),
        "loss": ("Loss", loss.is_file()),
        "provenance": ("Provenance", True),
    }
    base, last, images = report["states"][0]["label"], report["states"][-1]["label"], report["images"]
    context = {
        "title": f"{report['run']}: {last} vs {base}",
        "subtitle": format_subtitle(report),
        "sections": [(key, name) for key, (name, content) in sections.items() if content],
        "labels": [state["label"] for state in report["states"]],
        "last": last,
        "scores": [build_score_group(report, group) for group in report["groups"]],
        "missing": list(report["missing"].items()),
        "image_groups": [build_image_group(report, group, files) for group in report["groups"]],
        "images": images,
        "displayed_images": min(MAX_IMAGES_PER_PROMPT, images),
        "training": build_training_section(evaluator),
        "strengths": strengths,
        "frames": frames,
        "timeline": plot_scores(report, entries, [entry["step"] for entry in entries], "step") if entries else "",
        "timeline_note": "Generated and scored during training, with different seeds than the scores above."
        if frames and not any(state["step"] for state in report["states"])
        else "The requested checkpoints.",
        "pairs": pairs,
        "pairs_note": f"The images of {last} most similar to a training image: left generated, right the training image, "
        "with their cosine similarity.",
        "loss": encode_data_uri(loss, largest=1200) if loss.is_file() else None,
        "facts": collect_provenance(run, report),
        "config": (run / "config.yaml").read_text(encoding="utf-8") if (run / "config.yaml").is_file() else None,
        "tile": compute_tile_size(len(report["states"]), min(MAX_IMAGES_PER_PROMPT, images)),
    }
    page = get_jinja_environment().get_template("report.html").render(context)
    with atomic_write(folder / "report.html") as file:
        file.write_text(page, encoding="utf-8")


def write_comparison_image(folder: Path, files: ImageFiles, group: PromptGroup, sampling: Sampling) -> None:
    """Write `folder/images.png`: the images of every state for the prompts of `group`."""
    with atomic_write(folder / "images.png") as file:
        build_comparison_image(files, group, sampling).save(file, format="PNG")


def compute_tile_size(states: int, images: int) -> int:
    """Image width in pixels, so that all states of a prompt fit in one row if possible."""
    return min(MAX_TILE_SIZE, max(MIN_TILE_SIZE, (PAGE_WIDTH - 18 * (states - 1)) // (states * images) - 4))


def format_subtitle(report: dict) -> str:
    sampling = report["sampling"]
    scorers = ", ".join(f"{key} {name}" for key, name in report["scorers"].items())
    more = f" · {sampling['scheduler']}" if sampling.get("scheduler") else ""
    more += f" · negative prompt “{sampling['negative_prompt']}”" if sampling.get("negative_prompt") else ""
    return (
        f"{sum(map(len, report['groups'].values()))} prompts × {report['images']} images · {sampling['steps']} steps · "
        f"guidance {sampling['guidance_scale']:g}{more} · seeds from {sampling['seed']} · scorers: {scorers}"
    )


def build_score_group(report: dict, group: str) -> dict:
    rows = []
    for name, facts in report["metrics"][group].items():
        number_format, scores = facts["number_format"], [state["scores"][group][name] for state in report["states"]]
        gain = report["states"][-1]["difference"].get(group, {}).get(name)
        real = report["reference"][group].get(name)
        rows.append(
            {
                "name": name,
                "description": facts["description"],
                "up": facts["higher_is_better"],
                "cells": [
                    {
                        "value": format_score(score["value"], number_format),
                        "note": format_score_note(score, number_format),
                    }
                    for score in scores
                ],
                "change": format_signed(gain["value"], number_format) if gain else "",
                "change_range": format_interval(gain, number_format, format_signed) if gain else "",
                "verdict": classify_change(gain, facts, scores[-1], real),
                "real": format_score(real, number_format, ""),
                "bar": compute_bar_positions(scores[0], scores[-1], real),
            }
        )
    return {"title": f"{GROUP_TITLES[group]} ({group})", "rows": rows}


def format_score_note(score: dict, number_format: str) -> str:
    """The interval, and how many images have a value if not all do."""
    count = f"{score['count']} of {score['of']}" if score.get("count", 0) < score.get("of", 0) else ""
    return " · ".join(filter(None, [format_interval(score, number_format, format_score), count]))


def format_interval(score: dict, number_format: str, format_value) -> str:
    if score.get("low") is None:
        return ""
    return f"{format_value(score['low'], number_format)} – {format_value(score['high'], number_format)}"


def format_signed(value: float | None, number_format: str) -> str:
    return "–" if value is None else ("+" if value > 0 else "") + number_format.format(value)


def compute_bar_positions(base: dict, tuned: dict, real: float | None) -> dict[str, float | None]:
    """x coordinates of the marks, scaled from the smallest to the largest value."""
    marks = {
        "base": base["value"],
        "tuned": tuned["value"],
        "real": real,
        "low": tuned.get("low"),
        "high": tuned.get("high"),
    }
    values = [value for value in marks.values() if value is not None]
    if not values:
        return marks
    low, high = min(values), max(values)

    def position(value: float) -> float:
        return BAR_RANGE[0] + (BAR_RANGE[1] - BAR_RANGE[0]) * ((value - low) / (high - low) if high > low else 0.5)

    return {key: None if value is None else round(position(value), 1) for key, value in marks.items()}


def plot_adapter_scales(report: dict) -> str:
    """Scores over the adapter scale, if several scales were evaluated."""
    scaled = [state for state in report["states"][1:] if state["step"] is None and state["label"] != BEST]
    if len(scaled) < 2:
        return ""
    entries = [report["states"][0], *sorted(scaled, key=lambda state: state["scale"])]
    return plot_scores(report, entries, [0.0, *[state["scale"] for state in entries[1:]]], "scale")


def plot_scores(report: dict, entries: list[dict], positions: list[float], axis: str) -> str:
    panels = {}
    for group, metrics in report["metrics"].items():
        for name, facts in metrics.items():
            scores = [entry["scores"].get(group, {}).get(name, {"value": None}) for entry in entries]
            title = f"{format_score_name(group, name)} {'↑' if facts['higher_is_better'] else '↓'}"
            same = all(entry.get("groups", report["groups"]) == report["groups"] for entry in entries)
            panels[title] = (scores, report["reference"][group].get(name) if same else None)
    return plot_small_multiples(panels, positions, axis)


def collect_provenance(run: Path, report: dict) -> list[tuple[str, str]]:
    """Facts about the run from its `run.json`, if there is one."""
    facts = []
    if (run / RECORD_FILE).is_file():
        record = read_record(run, "command", "batch", "versions", "steps", "started", "commit", "device", "seed")
        command, batch = format_command_line(record["command"]), record["batch"]
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        factors = " × ".join(str(batch[key]) for key in ("size", "gradient_accumulation_steps", "processes"))
        steps = f"{record['steps']} of batch {factors}"
        facts = [("command", command), ("started", record["started"]), ("commit", record["commit"] or "unknown")]
        facts += [("device", record["device"]), ("steps", steps), ("seed", record["seed"]), ("versions", versions)]
        if best := record.get("best"):
            facts.append(("best", f"step {best['step']}: {best['metric']} {best['value']:.4f}"))
        facts += describe_inventory(run)
    return [*facts, ("scores", "scores.json in the same folder, schema " + str(report["schema"]))]


def describe_inventory(run: Path) -> list[tuple[str, str]]:
    """What was found in the run's data: used, notes, and not used with the reason."""
    data = read_data_report(run)
    used = ", ".join(f"{reason} {count}" for reason, count in data.get("used", {}).items())
    lists = {
        key: "; ".join(f"{reason}: {', '.join(names)}" for reason, names in data.get(key, {}).items())
        for key in ("notes", "not used")
    }
    return [(f"data {key}", text) for key, text in {"used": used, **lists}.items() if text]
