"""`model.vae` replaces the base's autoencoder by that of a folder or file, which is part of digests, caches and metadata."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdft.apps.generate.reproduce import restore_model_config
from sdft.models.autoencoder import check_autoencoder
from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.loading import load_stable_diffusion
from sdft.models.single_file import save_single_file
from sdft.runs.hashing import hash_file, hash_weights

VAE = "first_stage_model."
TINY_VAE = ASSETS_FOLDER / "tiny-sd" / "vae"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """Another autoencoder in every form."""
    home = tmp_path_factory.mktemp("vae")
    model = load_stable_diffusion("tiny-sd")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.vae.parameters():
            weight += 0.01 * torch.randn_like(weight)
    model.vae.save_pretrained(home / "mine")
    shutil.copytree(home / "mine", home / "pipeline" / "vae")
    save_single_file(model, home / "full.safetensors", torch.float32, {})
    weights = {k.removeprefix(VAE): w for k, w in load_file(home / "full.safetensors").items() if k.startswith(VAE)}
    save_file(weights | {"loss.logvar": torch.zeros(())}, home / "alone.safetensors")
    shutil.copytree(home / "mine", home / "fp16")
    half = {key: weight.half() for key, weight in load_file(home / "mine" / WEIGHTS).items()}
    (home / "fp16" / WEIGHTS).unlink()
    save_file(half, (home / "fp16" / WEIGHTS).with_suffix(".fp16.safetensors"), {"format": "pt"})
    names = {"folder": "mine", "pipeline": "pipeline", "checkpoint": "full.safetensors", "file": "alone.safetensors"}
    return {kind: home / name for kind, name in names.items()} | {"fp16": home / "fp16"}


def get_error(load) -> str:
    with pytest.raises(ValueError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)


def list_sources(sources: dict[str, Path]) -> list[str]:
    return [str(sources[kind]) for kind in ("folder", "pipeline", "checkpoint", "file")]


def test_folders_and_files_give_the_same_autoencoder_and_leave_the_rest(sources, tmp_path):
    base, expected = load_stable_diffusion("tiny-sd"), load_file(sources["folder"] / WEIGHTS)
    models = [load_stable_diffusion("tiny-sd", vae=name) for name in list_sources(sources)]
    assert len({hash_weights(model) for model in models}) == 1 and hash_weights(models[0]) != hash_weights(base)
    for model in models:
        assert all(torch.equal(weight, expected[key]) for key, weight in model.vae.state_dict().items())
        assert hash_weights(model.unet) == hash_weights(base.unet) and hash_weights(model.clip_l) == hash_weights(
            base.clip_l
        )
        assert dict(model.vae.config) | {"_name_or_path": None} == dict(base.vae.config) | {"_name_or_path": None}
        assert not model.vae.training and not any(weight.requires_grad for weight in model.vae.parameters())
    half = load_stable_diffusion("tiny-sd", vae=str(sources["fp16"])).vae
    assert torch.equal(half.decoder.conv_in.weight, expected["decoder.conv_in.weight"].half().float())


def test_a_base_file_without_autoencoder_opens_with_another_one(sources, tmp_path):
    tensors = load_file(sources["checkpoint"])
    save_file({key: weight for key, weight in tensors.items() if not key.startswith(VAE)}, tmp_path / "x.safetensors")
    model = load_stable_diffusion(str(tmp_path / "x.safetensors"), vae=str(sources["file"]))
    assert hash_weights(model) == hash_weights(load_stable_diffusion(str(sources["checkpoint"])))
    with_own = load_stable_diffusion(str(sources["checkpoint"]), vae=str(TINY_VAE))
    assert hash_weights(with_own) == hash_weights(load_stable_diffusion("tiny-sd"))


def test_what_is_no_autoencoder_for_the_base_is_named(sources, tmp_path):
    weights, target = load_file(sources["file"]), tmp_path / "x.safetensors"
    cases = {
        "no such folder or file": "nowhere",
        "holds UNet2DConditionModel, not AutoencoderKL": str(TINY_VAE.parent / "unet"),
        "no config.json": str(tmp_path),
        "is a LoRA file (lora_unet_x.lora_down.weight); give an autoencoder": {
            "lora_unet_x.lora_down.weight": torch.zeros(2)
        },
        "is a network with diffusers' names": load_file(TINY_VAE / WEIGHTS),
        "has the layer encoder.extra": weights | {"encoder.extra": torch.zeros(2)},
        "has the shape [2] instead of [3]": weights | {"decoder.conv_out.bias": torch.zeros(2)},
        "lacks decoder.conv_out.bias": {
            key: weight for key, weight in weights.items() if key != "decoder.conv_out.bias"
        },
        "holds no model that is known": {"x": torch.zeros(2)},
    }
    for message, source in cases.items():
        name = source if isinstance(source, str) else str(target)
        if name == str(target):
            save_file(source, target)
        error = get_error(lambda name=name: load_stable_diffusion("tiny-sd", vae=name))
        assert error.startswith(f"model.vae={name}: ") and message in error
    (tmp_path / "x.pt").write_bytes(b"")
    assert f"model.vae={tmp_path / 'x.pt'}: pickles can hold code" in get_error(
        lambda: check_autoencoder(str(tmp_path / "x.pt"))
    )
    for key, value in (("scaling_factor", 0.13025), ("latent_channels", 16)):
        config = json.loads((sources["folder"] / "config.json").read_text()) | {key: value}
        folder = shutil.copytree(sources["folder"], tmp_path / key)
        (folder / "config.json").write_text(json.dumps(config))
        error = get_error(lambda folder=folder: load_stable_diffusion("tiny-sd", vae=str(folder)))
        assert error.startswith(f"model.vae={folder}")


def test_a_run_records_the_autoencoder_and_continues_with_it_only(sources, run):
    options = ("model=tiny", "model.weights=pretrained", f"model.vae={sources['file']}", "steps=1")
    _, folder = run(*options)
    record = json.loads((folder / "run.json").read_text())
    assert record["files"] == {"vae": {"name": "alone.safetensors", "sha256": hash_file(sources["file"])}}
    assert record["digests"]["model"] == hash_weights(load_stable_diffusion("tiny-sd", vae=str(sources["folder"])))
    with safe_open(folder / "adapter" / "pytorch_lora_weights.safetensors", "pt") as reader:
        metadata = reader.metadata()
    assert metadata["ss_vae_name"] == "alone.safetensors" and metadata["ss_new_vae_hash"] == hash_file(sources["file"])
    assert not any(str(sources["file"].parent) in value for value in metadata.values())
    with pytest.raises(ValueError, match=r"model\.vae from .* to None"):
        run(*options[:2], "steps=2", f"resume={folder}")


def test_an_image_names_the_autoencoder_for_its_reproduction(sources):
    model = {"name": "tiny-sd", "architecture": None, "weights": "pretrained", "revision": None, "variant": None}
    model |= {"prediction_type": None, "zero_terminal_snr": False, "prompt_chunks": 1}
    assert "vae" not in restore_model_config({"model": model}, "x")  # as in images of older versions
    assert restore_model_config({"model": model | {"vae": "a"}}, "x")["vae"] == "a"
    file = str(sources["checkpoint"])
    assert restore_model_config({"model": model | {"name": file}}, "x")["name"] == file
    with pytest.raises(ValueError, match="neither in conf/model/ nor a folder or file"):
        restore_model_config({"model": model | {"name": f"{file}x"}}, "x")
