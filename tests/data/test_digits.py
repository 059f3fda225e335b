"""Embedded digits dataset."""

import pytest

from sdft.data.digits import Digits
from sdft.data.inked_digits import InkedDigits


def test_default_has_fifty_images_of_five_digits():
    source = Digits()
    assert len(source) == 50
    assert {c.split()[2] for c in source.captions()} == {"zero", "one", "two", "three", "four"}
    assert source[0].image.size == (32, 32) and source[0].caption == source.captions()[0]


def test_evaluation_uses_held_out_digits():
    spec = Digits().evaluation_spec()
    assert {spec.caption_labels[p]["digit"] for p in spec.prompts} == {"five", "six", "seven", "eight", "nine"}
    assert {spec.caption_labels[p]["style"] for p in spec.prompts} == {"neon"}
    assert len(spec.caption_labels) == 10 * 27


def test_pretraining_captions_contain_no_style():
    text = " ".join(InkedDigits(num_colorings=1).captions())
    assert not any(style in text for style in ("neon", "blueprint", "candy"))


def test_captions_match_samples():
    source = InkedDigits()
    for index in (0, 5000, 10_000):
        assert source[index].caption == source.captions()[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"style": "oil"}, "neon, blueprint, candy"), ({"digits": [11]}, "0 to 9"), ({"per_digit": 0}, "1 to 170")],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Digits(**options)
