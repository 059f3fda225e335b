"""Two runs side by side: the same prompt and seed of both under a slider, their options, scores and curves."""

from sdft.apps.gallery.overview_page import build_run_card, quote_path
from sdft.apps.gallery.run_facts import to_text
from sdft.apps.gallery.run_index import IndexedRun
from sdft.apps.gallery.run_page import list_run_facts
from sdft.apps.gallery.sample_images import SampleImage, list_sample_images, list_sample_steps
from sdft.apps.gallery.score_tables import list_score_rows

COMPARED_FACTS = (
    "loss at fixed noise",
    "took",
    "a step",
    "memory",
    "trainable",
    "result",
    "on",
    "commit",
)  # facts that are compared


def build_comparison_page(one: IndexedRun, other: IndexedRun, asked: tuple[int | None, int | None]) -> dict:
    """`asked` are the steps whose samples are shown; None is the last one, of a run beside itself the first."""
    same = one.id == other.id
    sides = [build_side(one, "A", asked[0], first=same), build_side(other, "B", asked[1], first=False)]
    found = pair_sample_images(
        *([*list_sample_images(run.folder, it["step"])] for run, it in zip((one, other), sides, strict=True))
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
            for left, right in found
        ],
        "options": [] if same else find_differing_options(one, other),
        "scores": [] if same else compare_scores(one, other),
        "costs": [] if same else compare_run_facts(one, other),
        "other_data": bool(one.facts.data and other.facts.data and one.facts.data != other.facts.data),
        "curves": [f"/curves/{quote_path(run.id)}" for run in ([one] if same else [one, other])],
    }


def build_side(run: IndexedRun, letter: str, asked: int | None, first: bool) -> dict:
    there = list_sample_steps(run.folder)
    step = asked if asked in there else (there[0 if first else -1] if there else -1)
    return {"run": run, "letter": letter, "card": build_run_card(run), "steps": there, "step": step}


def pair_sample_images(one: list[SampleImage], other: list[SampleImage]) -> list[tuple[SampleImage, SampleImage]]:
    """Pictures of the same prompt and seed."""
    known = {(drawn.prompt, drawn.seed): drawn for drawn in other if drawn.prompt}
    return [(drawn, known[drawn.prompt, drawn.seed]) for drawn in one if (drawn.prompt, drawn.seed) in known]


def find_differing_options(one: IndexedRun, other: IndexedRun) -> list[tuple[str, str, str]]:
    """Words that are not the same in both, with their values."""
    left, right = ({**parse_dotted_overrides(run), **run.facts.options} for run in (one, other))
    names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    return [(name, left.get(name, "–"), right.get(name, "–")) for name in names]


def parse_dotted_overrides(run: IndexedRun) -> dict[str, str]:
    """Words with points in them, such as sampling.steps, which are told by the command line alone."""
    pairs = (word.partition("=") for word in run.facts.overrides)
    return {key: to_text(value) for key, sign, value in pairs if sign and "." in key and not key.startswith("hydra")}


def compare_scores(one: IndexedRun, other: IndexedRun) -> list[dict]:
    """Scores that either has."""
    left, right = ({score.key: score for score in list_score_rows(run.folder)} for run in (one, other))
    found = []
    for name in {**left, **right}:
        score = left.get(name) or right[name]
        cells = [
            (told.get(name).value, told.get(name).interval) if name in told else ("–", "") for told in (left, right)
        ]
        base = next((told[name].base for told in (left, right) if name in told and told[name].base), "")
        found.append({"name": name, "up": score.up, "what": score.what, "base": base, "cells": cells})
    return found


def compare_run_facts(one: IndexedRun, other: IndexedRun) -> list[tuple[str, str, str]]:
    left, right = dict(list_run_facts(one)), dict(list_run_facts(other))
    return [
        (name, left.get(name, "–"), right.get(name, "–")) for name in COMPARED_FACTS if name in left or name in right
    ]
