"""Learning rates by part: the model names its parts, `part_lr` sets the rate of one, `text_encoder_lr` fills the others."""

from types import SimpleNamespace

import pytest
import torch

from sdft.losses.diffusion import DiffusionLoss
from sdft.methods.full import FullFineTuning
from sdft.methods.lora import LoRA
from sdft.training.build import check_prodigy
from sdft.training.lr_schedule import LRSchedule
from sdft.training.module import DiffusionModule
from sdft.training.settings import TrainingSettings


def describe_model(*text_encoders: str) -> SimpleNamespace:
    return SimpleNamespace(name="it", parts=dict.fromkeys(["unet", *text_encoders]), text_encoders=text_encoders)


def build_settings(**options) -> TrainingSettings:
    return TrainingSettings(steps=1, **{"lr": 3e-4, "text_encoder_lr": 2e-5} | options)


def test_text_encoder_lr_fills_the_rates_that_part_lr_leaves_out():
    model = describe_model("clip_l", "clip_g")
    assert build_settings().get_part_lr(model) == {"unet": 3e-4, "clip_l": 2e-5, "clip_g": 2e-5}
    settings = build_settings(part_lr={"clip_g": 7e-6, "unet": None})
    assert settings.get_part_lr(model) == {"unet": 3e-4, "clip_l": 2e-5, "clip_g": 7e-6}


def test_a_rate_of_an_unknown_part_names_the_parts_of_the_model():
    with pytest.raises(ValueError, match=r"part_lr\.clip_g=1e-05: .*unet, clip_l$"):
        build_settings(part_lr={"clip_g": 1e-5}).get_part_lr(describe_model("clip_l"))


def test_a_rate_of_an_untrained_part_is_refused_and_so_is_a_run_without_a_rate():
    with pytest.raises(ValueError, match=r"part_lr\.clip_l=1e-05: .*unet"):
        build_settings(part_lr={"clip_l": 1e-5}).check_trained_parts({"unet": 1e-4})
    with pytest.raises(ValueError, match=r"part_lr\.unet: "):
        build_settings(lr=0).check_trained_parts({"unet": 0.0})
    for options in ({"lr": 0, "text_encoder_lr": 0}, {"part_lr": {"unet": -1.0}}):
        with pytest.raises(ValueError, match="lr"):
            build_settings(**options)
    assert build_settings(lr=0, text_encoder_lr=0, part_lr={"unet": 1e-4}).part_lr == {"unet": 1e-4}


def test_prodigy_names_the_option_that_gives_it_several_rates():
    check_prodigy({"unet": 1.0, "clip_l": 1.0}, 1)
    with pytest.raises(ValueError, match=r"^method\.loraplus_lr_ratio=16: "):
        check_prodigy({"unet": 1.0}, 16)
    with pytest.raises(ValueError, match=r"^part_lr\.unet=1 part_lr\.clip_l=0\.5: "):
        check_prodigy({"unet": 1.0, "clip_l": 0.5}, 1)
    with pytest.raises(ValueError, match=r"^part_lr\.unet=0\.0001: "):
        check_prodigy({"unet": 1e-4}, 1)


@pytest.mark.parametrize("method", [LoRA(2, 2), LoRA(2, 2, text_encoder=False), FullFineTuning(text_encoder=True)])
def test_parameters_and_optimizer_groups_have_the_names_of_the_parts(tiny, method):
    model = tiny()
    rates = build_settings(part_lr={"clip_l": 1e-6}).get_part_lr(model)
    module = DiffusionModule(model, method, DiffusionLoss(), torch.optim.AdamW, LRSchedule("constant"), rates)
    module.__dict__["_trainer"] = SimpleNamespace(max_steps=3)
    (optimizer,), _ = module.configure_optimizers()
    parts = ["unet"] if method.text_encoder is False else ["unet", "clip_l"]
    assert list(module.get_trainable_parts()) == parts
    assert {name.split(".")[0] for name in module.get_trainable_parameters()} == set(parts)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {part: rates[part] for part in parts}
