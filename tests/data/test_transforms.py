"""A source through a template, or in part."""

import pytest

from sdft.data.digits import Digits
from sdft.data.transforms import CaptionTemplate, ImageSubset, apply_caption_template, split_validation


def test_a_template_words_captions_and_prompts_and_the_judge_is_asked_plainly():
    source = Digits(per_digit=1)
    oil = CaptionTemplate(source, "{caption} in oil")
    assert oil.captions() == [f"{text} in oil" for text in source.captions()]
    assert oil.prompts()[0] == f"{source.prompts()[0]} in oil"
    asked = oil.evaluation_spec()
    assert asked.prompts == [f"{text} in oil" for text in source.evaluation_spec().prompts]
    assert (
        asked.scoring_prompts == source.evaluation_spec().prompts
        and asked.caption_labels == source.evaluation_spec().caption_labels
    )


def test_a_template_without_a_hole_is_the_caption_of_all():
    assert set(CaptionTemplate(Digits(per_digit=1), "a sks dog").captions()) == {"a sks dog"}
    assert CaptionTemplate(Digits(per_digit=1), "a sks dog").prompts() == ["a sks dog"]
    source = Digits()
    assert apply_caption_template(source, None) is source


@pytest.mark.parametrize(("held_out", "count"), [(10, 10), (0.1, 5), (0, 0), (0.001, 0)])
def test_held_out_pictures_are_not_learned_from(held_out, count):
    source = Digits()
    taught, spare = split_validation(source, held_out)
    if not count:
        assert taught is source and spare is None
        return
    assert len(spare) == count and len(taught) + count == len(source)
    assert sorted(taught.indices + spare.indices) == list(range(len(source)))
    assert split_validation(source, held_out)[1].indices == spare.indices
    assert spare[0].caption == spare.captions()[0] == source.captions()[spare.indices[0]]


def test_something_must_be_left_to_learn():
    with pytest.raises(ValueError, match="validation_split=50: leaves nothing to learn of 50 pictures"):
        split_validation(Digits(), 50)


def test_a_part_says_how_many():
    assert ImageSubset(Digits(), [1, 2]).describe().endswith(", 2 of them")
