"""Different ways to say the same run give the same weights."""

import json

import pytest
import torch
from conftest import save_images
from safetensors.torch import load_file
from test_training_run import adapter, assert_same, rows

EXACT = ["optimizer.eps=1e-3"]  # a larger eps, for Adam turns rounding into signs


def test_epochs_are_the_same_number_of_steps(run):
    _, steps = run("steps=5", "schedule=cosine", "data.per_digit=2", name="steps")
    _, epochs = run("epochs=1", "schedule=cosine", "data.per_digit=2", name="epochs")
    assert_same(adapter(steps), adapter(epochs))
    assert [r["train/lr_unet"] for r in rows(steps)] == [r["train/lr_unet"] for r in rows(epochs)]


def test_scale_lr_multiplies_by_what_a_step_takes(run):  # S2-16
    _, plain = run(
        "steps=2", "lr=8e-4", "text_encoder_lr=8e-4", "batch_size=4", "gradient_accumulation_steps=2", name="plain"
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
    assert_same(adapter(plain), adapter(scaled), 1e-8)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """Five pictures of one three."""
    from sdft.data.digits import Digits

    return save_images(Digits("candy", [3], 5), tmp_path_factory.mktemp("pictures") / "subject", 5)


def dreambooth(subject, *words, images: int = 3):
    given = ["instance_prompt=a sks three", "class_prompt=a handwritten three", f"num_class_images={images}"]
    return ["method=dreambooth_lora", f"data.path={subject}", "steps=2", "lr=1e-3", *given, *EXACT, *words]


def test_prior_weight_0_is_no_prior(run, shared, subject, tmp_path):
    _, without = run(
        "data=folder", f"data.path={subject}", "data.caption=a sks three", "steps=2", "lr=1e-3", *EXACT, name="a"
    )
    _, zero = run(*dreambooth(subject, "prior_loss_weight=0"), name="b")
    assert not (tmp_path / "outputs" / "class_images").exists()  # nothing was sampled for nothing
    _, vanishing = run(*dreambooth(subject, "prior_loss_weight=1e-12"), name="c")
    _, one = shared(*dreambooth(subject))
    assert_same(adapter(without), adapter(zero))
    assert_same(adapter(without), adapter(vanishing), 1e-5)
    assert any(
        (one_w - w).abs().max() > 1e-4
        for one_w, w in zip(adapter(one).values(), adapter(without).values(), strict=True)
    )


def test_a_dreambooth_run_shows_subject_and_class(shared, subject):
    _, folder = shared(*dreambooth(subject))
    facts = json.loads((folder / "samples" / "step-000002" / "samples.json").read_text())
    assert [fact["prompt"] for fact in facts] == ["a sks three", "a handwritten three"]
    assert len(list((folder.parent / "outputs" / "class_images").glob("*/*.png"))) == 3


def test_a_lora_of_full_rank_can_be_a_full_update(tiny):  # S4-06
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
def test_every_optimizer_trains_and_resumes_to_the_bit(run, optimizer):
    words = [f"optimizer={optimizer}", "steps=6", "sample_every=3", "batch_size=4"]
    _, whole = run(*words, "save_every=3", "checkpoints_total_limit=3", name="whole")
    _, resumed = run(*words, f"resume={whole / 'checkpoints' / 'step-000003.ckpt'}", name="resumed")
    assert_same(adapter(whole), adapter(resumed))
    assert any(w.any() for key, w in adapter(whole).items() if "lora_B" in key)


def test_ema_and_an_optimizer_that_averages_are_not_combined(run):
    with pytest.raises(ValueError, match="ema=0.9: AdamWScheduleFree averages the weights itself; give ema=0"):
        run("optimizer=schedule_free", "ema=0.9", "steps=1")


def test_what_is_exported_are_the_optimizers_averages(run):
    module, folder = run("optimizer=schedule_free", "steps=3", "lr=0.01")
    written = load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    raw = module.model.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.lora_A["default"].weight
    assert not torch.equal(written[key], raw)
