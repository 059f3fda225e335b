"""The embedded world."""

import pytest

from sdft.data.digits import Digits, InkedDigits


def test_the_default_is_fifty_pictures_of_five_digits_in_a_style_of_their_own():
    source = Digits()
    assert len(source) == 50
    assert {c.split()[2] for c in source.captions()} == {"zero", "one", "two", "three", "four"}
    assert source[0].image.size == (32, 32) and source[0].caption == source.captions()[0]


def test_the_questions_are_about_digits_left_out():
    source = Digits()
    asked = source.evaluation_spec()
    assert {asked.caption_labels[p]["digit"] for p in asked.prompts} == {"five", "six", "seven", "eight", "nine"}
    assert {asked.caption_labels[p]["style"] for p in asked.prompts} == {"neon"}
    assert len(asked.caption_labels) == 10 * 27


def test_the_base_never_sees_a_style():
    words = " ".join(InkedDigits(num_colorings=1).captions())
    assert not any(style in words for style in ("neon", "blueprint", "candy"))


def test_captions_and_pictures_agree():
    source = InkedDigits()
    for index in (0, 5000, 10_000):
        assert source[index].caption == source.captions()[index]


@pytest.mark.parametrize(
    ("options", "told"),
    [({"style": "oil"}, "neon, blueprint, candy"), ({"digits": [11]}, "0 to 9"), ({"per_digit": 0}, "1 to 170")],
)
def test_bad_words_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        Digits(**options)
