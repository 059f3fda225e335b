"""Comparison page of two runs: images of the same prompt and seed under a slider, options, scores and curves."""

from sdft.apps.gallery.overview_page import build_run_card, quote_path
from sdft.apps.gallery.run_facts import to_text
from sdft.apps.gallery.run_index import IndexedRun
from sdft.apps.gallery.run_page import list_run_facts
from sdft.apps.gallery.sample_images import SampleImage, list_sample_images, list_sample_steps
from sdft.apps.gallery.score_tables import ScoreRow, list_comparable_rows

COMPARED_FACTS = (
    "loss at fixed noise",
    "duration",
    "per step",
    "memory",
    "trainable",
    "result",
    "device",
    "commit",
)


def build_comparison_page(one: IndexedRun, other: IndexedRun, requested_steps: tuple[int | None, int | None]) -> dict:
    """`requested_steps` select the samples; None is the last step, or the first on side A of a run compared to itself."""
    same = one.id == other.id
    sides = [
        build_side(one, "A", requested_steps[0], first=same),
        build_side(other, "B", requested_steps[1], first=False),
    ]
    rows_by_run, alike = list_comparable_rows([one.folder, other.folder])
    pairs = pair_sample_images(
        *([*list_sample_images(run.folder, side["step"])] for run, side in zip((one, other), sides, strict=True))
    )
    return {
        "sides": sides,
        "same": same,
        "pairs": [
            {
                "prompt": left.prompt,
                "seed": left.seed,
                "left": f"/file/{quote_path(one.id)}/{quote_path(left.file)}",
                "right": f"/file/{quote_path(other.id)}/{quote_path(right.file)}",
            }
            for left, right in pairs
        ],
        "options": [] if same else find_differing_options(one, other),
        "scores": compare_scores(rows_by_run) if alike and not same else [],
        "outdated": [
            (side["letter"], rows[0].outdated)
            for side, rows in zip(sides, rows_by_run, strict=True)
            if rows and rows[0].outdated
        ],
        "other_evaluation": not alike,
        "costs": [] if same else compare_run_facts(one, other),
        "other_data": bool(one.facts.data and other.facts.data and one.facts.data != other.facts.data),
        "curves": [f"/curves/{quote_path(run.id)}" for run in ([one] if same else [one, other])],
    }


def build_side(run: IndexedRun, letter: str, requested_step: int | None, first: bool) -> dict:
    steps = list_sample_steps(run.folder)
    default = steps[0 if first else -1] if steps else -1
    step = requested_step if requested_step in steps else default
    return {"run": run, "letter": letter, "card": build_run_card(run), "steps": steps, "step": step}


def pair_sample_images(one: list[SampleImage], other: list[SampleImage]) -> list[tuple[SampleImage, SampleImage]]:
    """Images of the same prompt and seed."""
    others = {(image.prompt, image.seed): image for image in other if image.prompt}
    return [(image, others[image.prompt, image.seed]) for image in one if (image.prompt, image.seed) in others]


def find_differing_options(one: IndexedRun, other: IndexedRun) -> list[tuple[str, str, str]]:
    """Options that differ, with both values."""
    left, right = ({**parse_dotted_overrides(run), **run.facts.options} for run in (one, other))
    names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    return [(name, left.get(name, "–"), right.get(name, "–")) for name in names]


def parse_dotted_overrides(run: IndexedRun) -> dict[str, str]:
    """Overrides of nested options, such as sampling.steps, which are only on the command line."""
    pairs = (override.partition("=") for override in run.facts.overrides)
    return {key: to_text(value) for key, sign, value in pairs if sign and "." in key and not key.startswith("hydra")}


def compare_scores(rows_by_run: list[list[ScoreRow]]) -> list[dict]:
    """Scores of either run, from alike evaluations."""
    left, right = ({score.key: score for score in rows} for rows in rows_by_run)
    rows = []
    for name in {**left, **right}:
        score = left.get(name) or right[name]
        cells = [
            (scores.get(name).value, scores.get(name).interval) if name in scores else ("–", "")
            for scores in (left, right)
        ]
        base = next((scores[name].base for scores in (left, right) if name in scores and scores[name].base), "")
        rows.append({"name": name, "up": score.up, "description": score.description, "base": base, "cells": cells})
    return rows


def compare_run_facts(one: IndexedRun, other: IndexedRun) -> list[tuple[str, str, str]]:
    left, right = dict(list_run_facts(one)), dict(list_run_facts(other))
    return [
        (name, left.get(name, "–"), right.get(name, "–")) for name in COMPARED_FACTS if name in left or name in right
    ]
