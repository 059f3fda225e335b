"""Equivalent configs give the same weights."""

import json

import pytest
import torch
from conftest import read_metric_rows, save_images
from safetensors.torch import load_file
from test_training_run import assert_tensors_equal, load_adapter

EXACT = ["optimizer.eps=1e-3"]  # a small eps lets Adam amplify rounding errors


@pytest.mark.slow
def test_epochs_are_the_same_number_of_steps(run):
    _, steps = run("steps=5", "schedule=cosine", "data.per_digit=2", name="steps")
    _, epochs = run("epochs=1", "schedule=cosine", "data.per_digit=2", name="epochs")
    assert_tensors_equal(load_adapter(steps), load_adapter(epochs))
    assert [r["train/lr_unet"] for r in read_metric_rows(steps)] == [
        r["train/lr_unet"] for r in read_metric_rows(epochs)
    ]


@pytest.mark.slow
def test_scale_lr_multiplies_by_the_samples_per_step(run):  # S2-16
    _, unscaled = run(
        "steps=2", "lr=8e-4", "text_encoder_lr=8e-4", "batch_size=4", "gradient_accumulation_steps=2", name="unscaled"
    )
    _, scaled = run(
        "steps=2",
        "lr=1e-4",
        "text_encoder_lr=1e-4",
        "batch_size=4",
        "gradient_accumulation_steps=2",
        "scale_lr=true",
        name="scaled",
    )
    assert_tensors_equal(load_adapter(unscaled), load_adapter(scaled), 1e-8)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """Five images of one three."""
    from sdft.data.digits import Digits

    return save_images(Digits("candy", [3], 5), tmp_path_factory.mktemp("images") / "subject", 5)


def build_dreambooth_overrides(subject, *overrides: str, images: int = 3):
    prior = ["instance_prompt=a sks three", "class_prompt=a handwritten three", f"num_class_images={images}"]
    return ["method=dreambooth_lora", f"data.path={subject}", "steps=2", "lr=1e-3", *prior, *EXACT, *overrides]


@pytest.mark.slow
def test_a_prior_weight_of_0_equals_no_prior(run, shared_run, subject, tmp_path):
    _, without = run(
        "data=folder", f"data.path={subject}", "data.caption=a sks three", "steps=2", "lr=1e-3", *EXACT, name="a"
    )
    _, zero = run(*build_dreambooth_overrides(subject, "prior_loss_weight=0"), name="b")
    assert not (tmp_path / "outputs" / "class_images").exists()  # no class images were sampled
    _, vanishing = run(*build_dreambooth_overrides(subject, "prior_loss_weight=1e-12"), name="c")
    _, weighted = shared_run(*build_dreambooth_overrides(subject))
    assert_tensors_equal(load_adapter(without), load_adapter(zero))
    assert_tensors_equal(load_adapter(without), load_adapter(vanishing), 1e-5)
    assert any(
        (with_prior - w).abs().max() > 1e-4
        for with_prior, w in zip(load_adapter(weighted).values(), load_adapter(without).values(), strict=True)
    )


def test_a_dreambooth_run_samples_subject_and_class(shared_run, subject):
    _, folder = shared_run(*build_dreambooth_overrides(subject))
    facts = json.loads((folder / "samples" / "step-000002" / "samples.json").read_text())
    assert [fact["prompt"] for fact in facts] == ["a sks three", "a handwritten three"]
    assert len(list((folder.parent / "outputs" / "class_images").glob("*/*.png"))) == 3


def test_a_full_rank_lora_can_represent_any_update(tiny):  # S4-06
    from sdft.methods.lora import LoRA

    model = tiny()
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = model.unet.get_submodule(name).weight.detach().clone()
    update = torch.randn_like(weight)
    rank = min(weight.shape)
    LoRA(rank, rank, text_encoder=False, unet_targets=[name]).prepare(model)
    layer = model.unet.get_submodule(name)
    u, s, v = torch.linalg.svd(update)
    layer.lora_B["default"].weight.data, layer.lora_A["default"].weight.data = u * s, v
    x = torch.randn(7, weight.shape[1])
    assert torch.allclose(layer(x), x @ (weight + update).T + (0 if layer.bias is None else layer.bias), atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adafactor", "prodigy", "schedule_free", "adamw8bit"])
@pytest.mark.slow
def test_every_optimizer_resumes_bit_identically(run, optimizer):
    overrides = [f"optimizer={optimizer}", "steps=6", "sample_every=3", "batch_size=4"]
    _, uninterrupted = run(*overrides, "save_every=3", "checkpoints_total_limit=3", name="uninterrupted")
    checkpoint = uninterrupted / "checkpoints" / "step-000003.ckpt"
    _, resumed = run(*overrides, f"resume={checkpoint}", name="resumed")
    assert_tensors_equal(load_adapter(uninterrupted), load_adapter(resumed))
    assert any(w.any() for key, w in load_adapter(uninterrupted).items() if "lora_B" in key)


def test_ema_is_refused_with_an_averaging_optimizer(run):
    with pytest.raises(ValueError, match="ema=0.9: AdamWScheduleFree .*ema=0"):
        run("optimizer=schedule_free", "ema=0.9", "steps=1")


def test_the_averages_of_a_schedule_free_optimizer_are_exported(run):
    module, folder = run("optimizer=schedule_free", "steps=3", "lr=0.01")
    exported = load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    raw = module.model.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.lora_A["default"].weight
    assert not torch.equal(exported[key], raw)
