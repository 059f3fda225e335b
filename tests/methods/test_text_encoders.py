"""`method.text_encoder` chooses text encoders, also by name."""

import re
from types import SimpleNamespace

import pytest
import torch

from sdft.methods.full import FullFineTuning
from sdft.methods.lcm_lora import LCMLoRA
from sdft.methods.lora import LoRA
from sdft.methods.pretrain import Pretrain
from sdft.training.run_setup import check_given_options


def list_trainable_parts(model, method) -> list[str]:
    method.check(model, ["a cat"])
    method.prepare(model)
    return [part for part, network in model.parts.items() if any(p.requires_grad for p in network.parameters())]


CHOICES = {  # trained text encoders of a model with one, and of one with two, for LoRA; full fine-tuning if it differs
    "null": (None, ["clip_l"], [], []),
    "true": (True, ["clip_l"], ["clip_l", "clip_g"], None),
    "false": (False, [], [], None),
    "one": (["clip_l"], ["clip_l"], ["clip_l"], None),
    "none": ([], [], [], None),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_chosen_text_encoders_are_trained(tiny, small_xl, choice):
    value, one, two, full = CHOICES[choice]
    assert list_trainable_parts(tiny(), LoRA(2, 2, text_encoder=value)) == ["unet", *one]
    assert list_trainable_parts(small_xl(), LoRA(2, 2, text_encoder=value)) == ["unet", *two]
    for method in (FullFineTuning, Pretrain):
        assert list_trainable_parts(tiny(), method(value)) == ["unet", *(one if full is None else full)]
        assert list_trainable_parts(small_xl(), method(value)) == ["unet", *two]


def test_pretraining_initializes_the_trained_parts_only(small_xl):
    model, base = small_xl(), small_xl()
    Pretrain(["clip_g"]).prepare(model)
    changed = {
        part: any(not torch.equal(a, b) for a, b in zip(net.parameters(), base.parts[part].parameters(), strict=True))
        for part, net in model.parts.items()
    }
    assert changed == {"unet": True, "clip_l": False, "clip_g": True}


def test_other_choices_are_refused_with_the_names_of_the_model(tiny, small_xl):
    for method in (lambda choice: LoRA(2, 2, text_encoder=choice), FullFineTuning):
        for choice in ("clip_l", 1, [3]):
            with pytest.raises(ValueError, match=r"^method\.text_encoder=.*\[clip_l\]$"):
                method(choice)
        with pytest.raises(ValueError, match=r"^method\.text_encoder=\['clip_g'\]: .*clip_l$"):
            method(["clip_g"]).check(tiny(), ["a cat"])
        method(["clip_g"]).check(small_xl(), ["a cat"])
    for choice in (True, None, ["clip_l"]):
        with pytest.raises(ValueError, match=r"^method\.text_encoder=(true|none|\['clip_l'\]): "):
            LCMLoRA(2, 2, text_encoder=choice)


@pytest.mark.parametrize(
    ("override", "part_lr"),
    [
        ("method.text_encoder_targets=[q_proj]", {}),
        ("text_encoder_lr=1e-5", {}),
        ("text_encoder_lr=1e-5", {"unet": 1e-4}),
        ("lr=1e-4", {"unet": 1e-4, "clip_l": None}),
    ],
)
@pytest.mark.parametrize("family", ["tiny", "small_xl"])
def test_an_option_that_no_trained_part_reads_is_refused(request, family, override, part_lr):
    module = SimpleNamespace(model=request.getfixturevalue(family)(), get_trainable_parts=lambda: {"unet": []})
    with pytest.raises(ValueError, match=f"^{re.escape(override)}: has no effect here: .*(unet|part_lr)"):
        check_given_options(["resolution=32", override], module, part_lr)
    check_given_options(["resolution=32"], module, part_lr)
    module.get_trainable_parts = lambda: {"unet": [], "clip_l": []}
    check_given_options([override], module, part_lr)
    with pytest.raises(ValueError, match="^text_encoder_lr=1: has no effect here: part_lr"):
        check_given_options(["text_encoder_lr=1"], module, {"clip_l": 1e-4})
    module.get_trainable_parts = lambda: {"clip_l": []}  # textual inversion, for which a requirement refuses lr alone
    check_given_options(["lr=1", "text_encoder_lr=1"], module, {})


def test_targets_of_text_encoders_are_refused_where_the_model_trains_none(run, small_model_folder):
    """Before training; those of a recipe are not given by the user, and those of a sweep are for other jobs."""
    options = [f"model.name={small_model_folder('sdxl')}", "model.weights=random", "steps=1"]
    with pytest.raises(ValueError, match=r"^method\.text_encoder_targets=\[q_proj\]: .* method\.text_encoder=true"):
        run("method.text_encoder_targets=[q_proj]", *options)
