"""`method.text_encoder` chooses text encoders, also by name."""

from types import SimpleNamespace

import pytest
import torch

from sdft.methods.full import FullFineTuning
from sdft.methods.lcm_lora import LCMLoRA
from sdft.methods.lora import LoRA
from sdft.methods.pretrain import Pretrain
from sdft.training.run_setup import check_given_rates


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


def test_a_rate_of_text_encoders_that_are_not_trained_is_refused(small_xl):
    module, overrides = SimpleNamespace(model=small_xl()), ["lr=1e-4", "text_encoder_lr=1e-5"]
    module.get_trainable_parts = lambda: {"unet": []}
    with pytest.raises(ValueError, match=r"^text_encoder_lr=1e-5: .*unet"):
        check_given_rates(overrides, module)
    check_given_rates(overrides[:1], module)
    module.get_trainable_parts = lambda: {"unet": [], "clip_g": []}
    check_given_rates(overrides, module)
