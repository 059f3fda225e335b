"""Caption template, subset and validation split."""

import pytest

from sdft.data.digits import Digits
from sdft.data.transforms import CaptionTemplate, ImageSubset, apply_caption_template, split_validation


def test_template_changes_captions_and_prompts_but_not_scoring_prompts():
    source = Digits(per_digit=1)
    oil = CaptionTemplate(source, "{caption} in oil")
    assert oil.captions() == [f"{text} in oil" for text in source.captions()]
    assert oil.prompts()[0] == f"{source.prompts()[0]} in oil"
    spec, source_spec = oil.evaluation_spec(), source.evaluation_spec()
    assert spec.prompts == [f"{text} in oil" for text in source_spec.prompts]
    assert spec.scoring_prompts == source_spec.prompts and spec.caption_labels == source_spec.caption_labels


def test_template_without_placeholder_replaces_every_caption():
    assert set(CaptionTemplate(Digits(per_digit=1), "a sks dog").captions()) == {"a sks dog"}
    assert CaptionTemplate(Digits(per_digit=1), "a sks dog").prompts() == ["a sks dog"]
    source = Digits()
    assert apply_caption_template(source, None) is source


@pytest.mark.parametrize(("validation_split", "count"), [(10, 10), (0.1, 5), (0, 0), (0.001, 0)])
def test_held_out_images_are_not_trained_on(validation_split, count):
    source = Digits()
    training, held_out = split_validation(source, validation_split)
    if not count:
        assert training is source and held_out is None
        return
    assert len(held_out) == count and len(training) + count == len(source)
    assert sorted([*training.indices, *held_out.indices]) == list(range(len(source)))
    assert split_validation(source, validation_split)[1].indices == held_out.indices
    assert held_out[0].caption == held_out.captions()[0] == source.captions()[held_out.indices[0]]


def test_split_without_training_images_is_refused():
    with pytest.raises(ValueError, match="validation_split=50: .* 50"):
        split_validation(Digits(), 50)


def test_subset_description_has_its_size():
    assert ImageSubset(Digits(), [1, 2]).describe().endswith(" subset of 2")
