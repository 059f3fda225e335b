"""Adapters at other strengths, checkpoints, and files from elsewhere."""

import pytest
import torch

from sdft.evaluation.variants import (
    BASE,
    build_file_variants,
    build_run_variants,
    load_checkpoint_weights,
    scale_adapters,
    select_checkpoints,
)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def noise_of(model):
    torch.manual_seed(0)
    noisy, context = torch.randn(1, 4, 8, 8), torch.randn(1, 32, model.unet.config.cross_attention_dim)
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([500]), context)


@pytest.fixture
def trained(shared):
    """A function from words to (module, folder) of a run with checkpoints at steps 1 and 2 of 3."""
    return lambda *words: shared(
        "steps=3", "lr=0.05", "save_every=1", "checkpoints_total_limit=9", "model.weights=pretrained", *words
    )


def fresh():
    from sdft.models.loading import load_stable_diffusion

    return load_stable_diffusion("tiny-sd")


def test_strength_scales_the_change_and_leaves_the_adapter_as_it_was(trained, tmp_path):
    module, folder = trained()
    model = fresh()
    states = build_run_variants(folder, module.method, [0.5, 1.0], None, 0)
    assert [state.label for state in states] == [BASE, "fine-tuned × 0.5", "fine-tuned"]
    base = noise_of(model)
    states[1].load(model)
    full = noise_of(model)
    with scale_adapters(model, 0.0):
        assert torch.allclose(noise_of(model), base, atol=1e-6)
    with scale_adapters(model, 0.5):
        half = noise_of(model)
    assert torch.equal(noise_of(model), full)
    assert not torch.allclose(half, full, atol=1e-3) and not torch.allclose(half, base, atol=1e-3)
    from safetensors.torch import load_file, save_file

    from sdft.lora.formats import DIFFUSERS_FILE, load_lora

    file = folder / "adapter" / DIFFUSERS_FILE  # B halved is dW halved
    halved = {k: w / 2 if ".lora_B." in k else w for k, w in load_file(file).items()}
    with __import__("safetensors").safe_open(file, "pt") as opened:
        save_file(halved, tmp_path / "half.safetensors", opened.metadata())
    other = fresh()
    load_lora(other, tmp_path / "half.safetensors")
    assert torch.allclose(noise_of(other), half, atol=1e-5)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["ema=0.9"],
        ["method=sft"],
        ["method=textual_inversion"],
        ["method.init_lora_weights=pissa", "noise_offset=0"],
    ],
    ids=["lora", "ema", "sft", "textual_inversion", "pissa"],
)
def test_the_last_checkpoint_is_the_result(trained, words):
    module, folder = trained(*words)
    steps = dict(select_checkpoints(folder, "all"))
    assert list(steps) == [1, 2, 3]
    result, checkpoint = fresh(), fresh()
    module.method.load(result, folder / module.method.output_kind)
    load_checkpoint_weights(checkpoint, module.method, steps[3], 0)
    ids = result.tokenize(["a handwritten three <mine>"])
    assert torch.equal(ids, checkpoint.tokenize(["a handwritten three <mine>"]))
    with torch.no_grad():
        assert torch.allclose(result.condition(ids), checkpoint.condition(ids), atol=1e-4)
    assert torch.allclose(noise_of(result), noise_of(checkpoint), atol=1e-4)


def test_checkpoints_that_are_not_there_are_told(trained):
    _, folder = trained()
    with pytest.raises(ValueError, match="checkpoints=7: choose all, best, or a list of steps; .* has 1, 2, 3"):
        select_checkpoints(folder, [2, 7])
    with pytest.raises(ValueError, match="checkpoints=some: choose all, best"):
        select_checkpoints(folder, "some")
    assert [step for step, _ in select_checkpoints(folder, [2])] == [2]


def test_only_an_adapter_has_a_strength(trained):
    module, folder = trained("method=sft")
    with pytest.raises(ValueError, match=r"adapter_scales=\[0.5\]: only an adapter has a strength, and this run"):
        build_run_variants(folder, module.method, [0.5], None, 0)
    with pytest.raises(ValueError, match="only an adapter has a strength, and adapter=.* is a pipeline"):
        build_file_variants(folder / "pipeline", [0.5])
    _, other = build_file_variants(folder / "pipeline", [1.0])
    model = fresh()
    other.load(model)
    assert torch.equal(noise_of(model), noise_of(module.model.eval()))
