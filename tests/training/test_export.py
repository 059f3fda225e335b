"""Exported LoRAs give the same outputs in both formats and in diffusers: alpha and all keys survive."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdft.lora.file import read_lora_file
from sdft.lora.formats import load_lora
from sdft.lora.to_lora import compute_low_rank_updates
from sdft.methods.lora import LoRA

PROMPT = "a handwritten five in neon light"


def add_lora(model, size: float = 0.03, **options):
    """Add a LoRA with alpha other than rank and perturbed weights; large ones saturate attention, which amplifies rounding."""
    method = LoRA(**{"rank": 4, "alpha": 6.0} | options)
    method.prepare(model)
    torch.manual_seed(3)
    for p in model.parameters():
        if p.requires_grad:
            p.data += size * torch.randn_like(p)
    return method


@torch.no_grad()
def compute_output(model):
    torch.manual_seed(1)
    return model.predict(torch.randn(2, 4, 8, 8), torch.tensor([400, 20]), model.condition_prompts([PROMPT] * 2))


CONVOLUTIONS = {"unet_targets": ["to_q", "conv1", "proj_in"]}
KINDS = {
    "attention": {},
    "attention and convolutions": {"unet_targets": ["to_q", "to_v", "conv1", "conv2", "proj_in"]},
    "unet only": {"text_encoder": False},
    "rank-stabilised": {"use_rslora": True},
    "loha": {"adapter_type": "loha", "size": 0.3},
    "loha of convolutions": {"adapter_type": "loha", "rank": 2, "size": 0.3, **CONVOLUTIONS},
    "lokr": {"adapter_type": "lokr", "size": 0.3},
    "lokr of convolutions": {"adapter_type": "lokr", "rank": 1, "size": 0.3, **CONVOLUTIONS},
    "pissa": {"init_lora_weights": "pissa", "size": 0.05},
    "rank-stabilised pissa": {"init_lora_weights": "pissa", "use_rslora": True, "size": 0.05},
}


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "mine-kohya.safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_alpha_survives_both_formats(tiny, tmp_path, kind, file):
    model = tiny()
    base = compute_output(model)
    add_lora(model, **KINDS[kind]).save(model, tmp_path, "mine")
    fresh = tiny()
    load_lora(fresh, tmp_path / file)
    rounding = 1e-4 if "pissa" in kind else 1e-5  # PiSSA subtracts large terms; sums differ in order
    assert torch.allclose(compute_output(fresh), compute_output(model), atol=rounding)
    assert not torch.allclose(compute_output(fresh), base, atol=1e-2)


@pytest.mark.parametrize("kind", ["attention", "loha", "lokr", "pissa"])
def test_an_untrained_adapter_changes_nothing(tiny, kind):
    model = tiny()
    base = compute_output(model)
    add_lora(model, **KINDS[kind] | {"size": 0.0})
    assert torch.allclose(compute_output(model), base, atol=2e-6)


@pytest.mark.parametrize(
    "options", [{}, {"rank": 300}, {"adapter_type": "loha", "rank": 12}, {"adapter_type": "lokr", "rank": 64}]
)
def test_low_rank_factors_multiply_to_the_weight_change_at_any_rank(tiny, options):
    model = tiny()
    add_lora(model, text_encoder=False, unet_targets=["to_k", "conv1"], **options)
    layers = {name: layer for name, layer in model.unet.named_modules() if hasattr(layer, "get_delta_weight")}
    for name, (up, down) in compute_low_rank_updates(model.unet).items():
        change = layers[name].get_delta_weight("default").flatten(1)
        assert torch.allclose(up @ down, change, atol=1e-5) and up.shape[1] <= min(change.shape), name


def test_a_merged_lora_equals_an_applied_one(tiny, tmp_path):  # S0-02
    model = tiny()
    add_lora(model, size=0.03).save(model, tmp_path, "mine")
    applied = compute_output(model)
    pipeline = tiny().build_pipeline()
    pipeline.load_lora_weights(tmp_path)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    merged = tiny()
    merged.unet, merged.clip_l = pipeline.unet, pipeline.text_encoder
    assert torch.allclose(compute_output(merged), applied, atol=1e-5)


def test_dora_survives_the_diffusers_format(tiny, tmp_path):
    model = tiny()
    add_lora(model, use_dora=True).save(model, tmp_path, "mine")
    fresh = tiny()
    load_lora(fresh, tmp_path)
    assert torch.allclose(compute_output(fresh), compute_output(model), atol=1e-5)


def test_the_kohya_dora_has_one_magnitude_per_output_and_can_be_loaded(tiny, tmp_path):
    model = tiny()
    add_lora(model, use_dora=True, unet_targets=["to_q", "conv1"]).save(model, tmp_path, "mine")
    shapes = {k: v.shape for k, v in load_file(tmp_path / "mine-kohya.safetensors").items() if k.endswith("dora_scale")}
    assert {len(shape) for shape in shapes.values()} == {2, 4} and all(
        shape[1:].numel() == 1 for shape in shapes.values()
    )
    fresh = tiny()
    load_lora(fresh, tmp_path / "mine-kohya.safetensors")
    assert torch.allclose(compute_output(fresh), compute_output(model), atol=1e-5)


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "mine-kohya.safetensors"])
def test_diffusers_loads_both_files_and_gives_the_sampled_image(tiny, tmp_path, file):
    from sdft.models.sampling import Sampling

    model = tiny()
    model.build_pipeline().save_pretrained(tmp_path / "base")
    add_lora(model).save(model, tmp_path, "mine")
    sampled = next(iter(Sampling(steps=4, guidance_scale=3.0, seed=5)(model, [PROMPT], 32)))
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "base", safety_checker=None)
    pipeline.load_lora_weights(tmp_path, weight_name=file)
    image = pipeline(
        PROMPT,
        num_inference_steps=4,
        guidance_scale=3.0,
        height=32,
        width=32,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert max(abs(a - b) for a, b in zip(sampled.tobytes(), image.tobytes(), strict=True)) <= 2


def test_the_kohya_file_has_kohya_s_key_names(tiny, tmp_path):
    model = tiny()
    add_lora(model).save(model, tmp_path, "mine")
    with safe_open(tmp_path / "mine-kohya.safetensors", "pt") as file:
        keys, metadata = set(file.keys()), file.metadata()
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert {f"{layer}.lora_down.weight", f"{layer}.lora_up.weight", f"{layer}.alpha"} <= keys
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha" in keys
    assert metadata["ss_network_dim"] == "4" and metadata["ss_network_alpha"] == "6.0"


@pytest.mark.parametrize("kind", KINDS)
def test_the_diffusers_file_is_right_for_readers_without_alpha(tiny, tmp_path, kind):
    """Readers of the last two years know these key names, one rank per part, and alpha equal to it; no peft config."""
    model = tiny()
    add_lora(model, **KINDS[kind] | {"rank": 2}).save(model, tmp_path, "mine")
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
    fresh = read_lora_file(tmp_path / "mine-kohya.safetensors").layers  # the trained change, by another format
    ranks = {
        part: {len(t) for k, t in tensors.items() if k.startswith(part) and "lora_A" in k} for part in model.components
    }
    assert all(len(values) <= 1 for values in ranks.values()) and len(tensors) == 2 * len(fresh)
    for (part, layer), expected in fresh.items():
        up, down = (tensors[f"{part}.{layer}.lora_{side}.weight"].double().flatten(1) for side in "BA")
        torch.testing.assert_close(up @ down, expected.compute_delta().flatten(1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("change", ["unknown", "renamed", "missing"])
@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "mine-kohya.safetensors"])
def test_mismatched_keys_are_an_error(tiny, tmp_path, file, change):
    model = tiny()
    add_lora(model).save(model, tmp_path, "mine")
    with safe_open(tmp_path / file, "pt") as source:
        metadata = source.metadata()
    weights = load_file(tmp_path / file)
    key = next(k for k in weights if k.endswith(("lora_A.weight", "lora_down.weight")))
    if change == "unknown":
        weights["lora_unet_nowhere.lora_down.weight"] = torch.ones(2, 2)
    elif change == "renamed":
        weights[key.replace("down_blocks", "side_blocks").replace("text_model", "test_model")] = weights.pop(key)
    else:
        del weights[key]
    save_file(weights, tmp_path / "changed.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="changed.safetensors"):
        load_lora(tiny(), tmp_path / "changed.safetensors")


def test_a_lora_of_another_architecture_is_rejected(tiny, tmp_path):
    model = tiny()
    add_lora(model).save(model, tmp_path, "mine")
    weights = {
        k: v[..., :-1].contiguous() if v.ndim > 1 else v
        for k, v in load_file(tmp_path / "mine-kohya.safetensors").items()
    }
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="adapter=.*other.safetensors"):
        load_lora(tiny(), tmp_path / "other.safetensors")


def test_a_path_without_a_lora_is_rejected(tiny, tmp_path):
    with pytest.raises(ValueError, match="adapter="):
        load_lora(tiny(), tmp_path)
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_lora(tiny(), tmp_path / "text.safetensors")


def test_no_partial_files_remain(tiny, tmp_path):
    model = tiny()
    add_lora(model).save(model, tmp_path, "mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine-kohya.safetensors", "pytorch_lora_weights.safetensors"]
