"""Adapter scales, checkpoints and external files."""

import pytest
import torch
from safetensors.torch import save_file

from sdft.evaluation.variants import (
    BASE,
    build_file_variants,
    build_run_variants,
    load_checkpoint_weights,
    select_checkpoints,
)
from sdft.lora.scaling import scale_adapters
from sdft.models.conditioning import Conditioning
from sdft.models.image_cache import collect_image_settings
from sdft.models.original_layout import VAE_PREFIX
from sdft.models.sampling import Sampling
from sdft.models.saving import save_pipeline
from sdft.models.single_file import save_single_file, to_original_layout
from sdft.runs.hashing import hash_weights


def predict_noise(model):
    torch.manual_seed(0)
    noisy, context = torch.randn(1, 4, 8, 8), torch.randn(1, 32, model.unet.config.cross_attention_dim)
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([500]), Conditioning({"context": context}))


@pytest.fixture
def train_run(shared_run):
    """A function from overrides to (module, folder) of a run with checkpoints at every one of 3 steps."""
    return lambda *overrides: shared_run(
        "steps=3", "lr=0.05", "save_every=1", "checkpoints_total_limit=9", "model.weights=pretrained", *overrides
    )


def load_tiny_model():
    from sdft.models.loading import load_stable_diffusion

    return load_stable_diffusion("tiny-sd")


def test_scale_multiplies_the_weight_change_and_restores_the_adapter(train_run, tmp_path):
    module, folder = train_run()
    model = load_tiny_model()
    states = build_run_variants(folder, module.method, [0.5, 1.0], None, 0)
    assert [state.label for state in states] == [BASE, "fine-tuned × 0.5", "fine-tuned"]
    base = predict_noise(model)
    states[1].load(model)
    full = predict_noise(model)
    with scale_adapters(model, 0.0):
        assert torch.equal(predict_noise(model), base)
    with scale_adapters(model, 0.5):
        half = predict_noise(model)
    assert torch.equal(predict_noise(model), full)
    assert not torch.allclose(half, full, atol=1e-3) and not torch.allclose(half, base, atol=1e-3)
    from safetensors.torch import load_file, save_file

    from sdft.lora.formats import DIFFUSERS_FILE, load_lora

    file = folder / "adapter" / DIFFUSERS_FILE  # B halved is dW halved
    halved = {k: w / 2 if ".lora_B." in k else w for k, w in load_file(file).items()}
    with __import__("safetensors").safe_open(file, "pt") as reader:
        save_file(halved, tmp_path / "half.safetensors", reader.metadata())
    other = load_tiny_model()
    load_lora(other, tmp_path / "half.safetensors")
    assert torch.allclose(predict_noise(other), half, atol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        pytest.param(["ema=0.9"], marks=pytest.mark.slow),
        ["method=sft"],
        pytest.param(["method=textual_inversion"], marks=pytest.mark.slow),
        pytest.param(["method.init_lora_weights=pissa", "noise_offset=0"], marks=pytest.mark.slow),
    ],
    ids=["lora", "ema", "sft", "textual_inversion", "pissa"],
)
def test_last_checkpoint_equals_the_result(train_run, overrides):
    module, folder = train_run(*overrides)
    steps = dict(select_checkpoints(folder, "all"))
    assert list(steps) == [1, 2, 3]
    result, checkpoint = load_tiny_model(), load_tiny_model()
    module.method.load(result, folder / module.method.output_kind)
    load_checkpoint_weights(checkpoint, module.method, steps[3], 0)
    ids = result.tokenize(["a handwritten three <mine>"])
    assert torch.equal(ids, checkpoint.tokenize(["a handwritten three <mine>"]))
    with torch.no_grad():
        assert torch.allclose(result.encode_text(ids)["context"], checkpoint.encode_text(ids)["context"], atol=1e-4)
    assert torch.allclose(predict_noise(result), predict_noise(checkpoint), atol=1e-4)


def test_missing_checkpoints_are_rejected(train_run):
    _, folder = train_run()
    with pytest.raises(ValueError, match="checkpoints=7: .*; .* 1, 2, 3"):
        select_checkpoints(folder, [2, 7])
    with pytest.raises(ValueError, match="checkpoints=some: "):
        select_checkpoints(folder, "some")
    assert [step for step, _ in select_checkpoints(folder, [2])] == [2]


def test_only_adapters_can_be_scaled(train_run):
    module, folder = train_run("method=sft")
    with pytest.raises(ValueError, match=r"adapter_scales=\[0.5\]: .*pipeline/"):
        build_run_variants(folder, module.method, [0.5], None, 0)
    with pytest.raises(ValueError, match=r"adapter_scales=\[0.5\]: .*adapter=.* is a whole model"):
        build_file_variants(folder / "pipeline", [0.5])
    _, other = build_file_variants(folder / "pipeline", [1.0])
    model = load_tiny_model()
    other.load(model)
    assert torch.equal(predict_noise(model), predict_noise(module.model.eval()))


@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
def test_a_whole_model_brings_its_own_settings(small_xl, small_model_folder, tmp_path, name):
    """Its networks, empty caption, prediction type and zero terminal SNR, not those of the base."""
    options = {"empty_caption": "encoded", "prediction_type": "v_prediction", "zero_terminal_snr": True}
    path, tuned, base = tmp_path / name, small_xl(seed=1, **options), small_xl()
    if name == "folder":
        save_pipeline(tuned, path)
    else:
        save_single_file(tuned, path, torch.float32, {})
    _, variant = build_file_variants(path, [1.0])
    variant.check(base)
    variant.load(base)
    assert hash_weights(base) == hash_weights(tuned)
    settings = [collect_image_settings(model, Sampling(), 32) for model in (base, tuned)]
    assert settings[0] == settings[1]
    assert base.empty_caption == "encoded" and base.checkpoint_prediction_type == "v_prediction"
    assert base.noise_process.has_zero_terminal_snr
    assert not base.training and not any(parameter.requires_grad for parameter in base.parameters())
    with pytest.raises(ValueError, match=r"adapter_scales=\[0.5\]: .* is a whole model"):
        build_file_variants(path, [0.5])


def test_a_checkpoint_file_leaves_to_the_base_what_it_does_not_hold(tiny, small_xl, tmp_path):
    tuned, path = tiny(seed=1), tmp_path / "tuned.safetensors"
    save_file({k: w for k, w in to_original_layout(tuned).items() if not k.startswith(VAE_PREFIX)}, path)
    _, variant = build_file_variants(path, [1.0])
    base = tiny(prediction_type="v_prediction")
    vae = base.vae.state_dict()
    variant.check(base)
    variant.load(base)
    assert torch.equal(predict_noise(base), predict_noise(tuned))
    assert all(torch.equal(vae[key], weight) for key, weight in base.vae.state_dict().items())
    with pytest.raises(
        ValueError, match="adapter=.*tuned.safetensors: is Stable Diffusion 1, but .* Stable Diffusion XL"
    ):
        variant.check(small_xl())
    short = {k: w for k, w in to_original_layout(tuned).items() if "time_embed.2" not in k}
    save_file(short, path)
    with pytest.raises(ValueError, match="adapter=.*tuned.safetensors: lacks model.diffusion_model.time_embed.2"):
        variant.check(base)


def test_a_file_that_does_not_fit_is_refused_before_any_image_is_generated(tmp_path):
    from omegaconf import OmegaConf
    from safetensors.torch import save_file

    from sdft.evaluation.variant_images import generate_variant_images

    save_file(
        {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(2, 2)}, tmp_path / "xl.safetensors"
    )
    model = {"_target_": "sdft.models.loading.load_stable_diffusion", "name": "tiny-sd", "weights": "random"}
    cfg = OmegaConf.create({"seed": 0, "model": model})
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    for name, family in (("xl.safetensors", "for Stable Diffusion XL"), ("pipeline", "Stable Diffusion 3")):
        states = build_file_variants(tmp_path / name, [1.0])
        with pytest.raises(ValueError, match=f"adapter=.*{name}: is {family}"):
            next(generate_variant_images(tmp_path, cfg, states, [], None, "cpu"))
