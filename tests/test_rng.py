"""Random draws are a function of (seed, purpose, number); the strings of the purposes are data formats."""

import re
from pathlib import Path

import pytest
import torch

import sdft
from sdft.rng import Draw, draw_permutation, make_generator

DRAW_STRINGS = {
    "IMAGE_ORDER": "order",
    "STEP_ORDER": "runs",
    "CROP": "crop",
    "FLIP": "flip",
    "DROPOUT": "dropout",
    "CAPTION": "caption",
    "TAGS": "tags",
    "POSTERIOR": "posterior",
    "NOISE": "noise",
    "PERTURBATION": "perturbation",
    "OFFSET": "offset",
    "DIRECTION": "direction",
    "GUIDANCE": "guidance",
    "TIMESTEP": "timestep",
    "FIXED": "fixed",
    "DIGIT_STYLE": "look",
    "DIGIT_SIZE": "digit size",
    "TRAINING_IMAGES": "",
    "CLASS_IMAGES": "class ",
    "HELD_OUT_IMAGES": "held out ",
    "ROUNDING": "rounding",
}


def test_the_strings_that_seed_draws_never_change():
    assert {name: value for name, value in vars(Draw).items() if name.isupper()} == DRAW_STRINGS


def test_the_numbers_that_they_yield_never_change():
    assert draw_permutation(0, 0, 8).tolist() == [1, 2, 4, 3, 0, 7, 5, 6]
    assert draw_permutation(7, (2, 3), 5).tolist() == [2, 0, 1, 4, 3]
    keys = [(0, Draw.NOISE, 0), (5, Draw.HELD_OUT_IMAGES + Draw.TIMESTEP, 12), (1, Draw.NOISE, (Draw.FIXED, 2, 0.125))]
    seeds = [333594243501737407, 5472001543244317248, 9195861889850614617]
    assert [make_generator(*key).initial_seed() for key in keys] == seeds
    numbers = torch.randn(2, generator=make_generator(0, Draw.NOISE, 0)).tolist()
    assert numbers == pytest.approx([0.7341338396072388, 1.1299134492874146], rel=1e-6)


def test_draws_are_seeded_by_the_strings_of_the_table_only():
    literal = re.compile(r"(?:make_generator|build_generator|draw_\w+|build_dataset)\([^()]*[\"'][^()]*\)")
    sources = [file.read_text(encoding="utf-8") for file in Path(sdft.__file__).parent.rglob("*.py")]
    assert sum("Draw." in source for source in sources) >= 5
    assert [match for source in sources for match in literal.findall(source)] == []
