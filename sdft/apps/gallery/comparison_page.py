"""Two runs side by side: the same prompt and seed of both under a slider, their words, scores and curves."""

from sdft.apps.gallery.overview_page import card, quoted
from sdft.apps.gallery.run_facts import text
from sdft.apps.gallery.run_index import Run
from sdft.apps.gallery.run_page import facts
from sdft.apps.gallery.sample_images import Print, prints, steps
from sdft.apps.gallery.score_tables import scores

TOLD = (
    "loss at fixed noise",
    "took",
    "a step",
    "memory",
    "learns",
    "result",
    "on",
    "commit",
)  # facts that are compared


def pair_page(one: Run, other: Run, asked: tuple[int | None, int | None]) -> dict:
    """`asked` are the steps whose samples are shown; None is the last one, of a run beside itself the first."""
    same = one.id == other.id
    sides = [side(one, "A", asked[0], first=same), side(other, "B", asked[1], first=False)]
    found = matches(*([*prints(run.folder, it["step"])] for run, it in zip((one, other), sides, strict=True)))
    return {
        "sides": sides,
        "same": same,
        "pairs": [
            {
                "prompt": left.prompt,
                "seed": left.seed,
                "left": f"/file/{quoted(one.id)}/{quoted(left.file)}",
                "right": f"/file/{quoted(other.id)}/{quoted(right.file)}",
            }
            for left, right in found
        ],
        "words": [] if same else differing(one, other),
        "scores": [] if same else beside(one, other),
        "costs": [] if same else told(one, other),
        "other_data": bool(one.facts.data and other.facts.data and one.facts.data != other.facts.data),
        "curves": [f"/curves/{quoted(run.id)}" for run in ([one] if same else [one, other])],
    }


def side(run: Run, letter: str, asked: int | None, first: bool) -> dict:
    there = steps(run.folder)
    step = asked if asked in there else (there[0 if first else -1] if there else -1)
    return {"run": run, "letter": letter, "card": card(run), "steps": there, "step": step}


def matches(one: list[Print], other: list[Print]) -> list[tuple[Print, Print]]:
    """Pictures of the same prompt and seed."""
    known = {(drawn.prompt, drawn.seed): drawn for drawn in other if drawn.prompt}
    return [(drawn, known[drawn.prompt, drawn.seed]) for drawn in one if (drawn.prompt, drawn.seed) in known]


def differing(one: Run, other: Run) -> list[tuple[str, str, str]]:
    """Words that are not the same in both, with their values."""
    left, right = ({**of_command(run), **run.facts.words} for run in (one, other))
    names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    return [(name, left.get(name, "–"), right.get(name, "–")) for name in names]


def of_command(run: Run) -> dict[str, str]:
    """Words with points in them, such as sampling.steps, which are told by the command line alone."""
    pairs = (word.partition("=") for word in run.facts.overrides)
    return {key: text(value) for key, sign, value in pairs if sign and "." in key and not key.startswith("hydra")}


def beside(one: Run, other: Run) -> list[dict]:
    """Scores that either has."""
    left, right = ({score.key: score for score in scores(run.folder)} for run in (one, other))
    found = []
    for name in {**left, **right}:
        score = left.get(name) or right[name]
        cells = [
            (told.get(name).value, told.get(name).interval) if name in told else ("–", "") for told in (left, right)
        ]
        base = next((told[name].base for told in (left, right) if name in told and told[name].base), "")
        found.append({"name": name, "up": score.up, "what": score.what, "base": base, "cells": cells})
    return found


def told(one: Run, other: Run) -> list[tuple[str, str, str]]:
    left, right = dict(facts(one)), dict(facts(other))
    return [(name, left.get(name, "–"), right.get(name, "–")) for name in TOLD if name in left or name in right]
