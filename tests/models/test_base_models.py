"""A base model that cannot be used is called what it is, in one line and before its weights are read."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdft.lora.merging import load_model_or_run
from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.loading import load_pretrained, load_stable_diffusion

TINY_SD = ASSETS_FOLDER / "tiny-sd"
WEIGHTS = {part: next((TINY_SD / part).glob("*.safetensors")).name for part in ("unet", "vae", "text_encoder")}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model folder to modify."""
    return shutil.copytree(TINY_SD, tmp_path / "model")


def change(file: Path, **entries) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def get_error(load) -> str:
    with pytest.raises(ValueError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)


OTHER_MODELS = {
    "refiner": ("model_index.json", {"_class_name": "StableDiffusionXLImg2ImgPipeline"}, "refiner"),
    "sd3": ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "Stable Diffusion 3"),
    "flux": ("model_index.json", {"_class_name": "FluxPipeline"}, "Flux"),
    "sdxl's UNet": ("unet/config.json", {"addition_embed_type": "text_time"}, "no text_encoder_2/config.json"),
    "inpainting": ("unet/config.json", {"in_channels": 9}, "inpainting.*9 input channels"),
    "instruct-pix2pix": ("unet/config.json", {"in_channels": 8}, "InstructPix2Pix"),
    "depth": ("unet/config.json", {"in_channels": 5}, "depth"),
    "learned variance": ("unet/config.json", {"out_channels": 8}, "8 output channels"),
    "text width": ("unet/config.json", {"cross_attention_dim": 96}, "width 96.*make 64"),
    "text widths": ("unet/config.json", {"cross_attention_dim": [64, 96]}, "width 64, 96"),
    "lcm": ("unet/config.json", {"time_cond_proj_dim": 256}, "latent consistency"),
    "class labels": ("unet/config.json", {"num_class_embeds": 10}, "class labels"),
    "video": ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, "UNet3DConditionModel"),
    "another vae": ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
    "t5": ("text_encoder/config.json", {"model_type": "t5"}, "t5, not CLIP"),
    "flow": ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching"),
    "flow prediction": ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}, "flow matching"),
    "no betas": ("scheduler/scheduler_config.json", {"_class_name": "KarrasVeScheduler"}, "KarrasVeScheduler"),
    "unknown betas": ("scheduler/scheduler_config.json", {"beta_schedule": "steep"}, "scheduler/.*steep"),
    "wrong types": ("scheduler/scheduler_config.json", {"beta_start": "low"}, "scheduler/ cannot be loaded"),
    "vocabulary": ("text_encoder/config.json", {"vocab_size": 100}, "tokenizer/ has .* tokens.*knows 100"),
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_other_families_and_parts_that_do_not_fit_are_named_before_weights_are_read(folder, kind, monkeypatch):
    file, entries, message = OTHER_MODELS[kind]
    change(folder / file, **entries)
    monkeypatch.setattr("sdft.models.model_folder.load_network", lambda *_, **__: pytest.fail("weights were read"))
    error = get_error(lambda: load_stable_diffusion(str(folder)))
    assert re.search(f"model.name={folder}: .*{message}", error)


def test_a_transformer_instead_of_a_unet_is_named(folder):
    (folder / "model_index.json").unlink()
    (folder / "unet").rename(folder / "transformer")
    assert "another family (it has transformer/)" in get_error(lambda: load_pretrained(str(folder)))


@pytest.mark.parametrize(
    "file", ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"]
)
@pytest.mark.parametrize("content", ["{", "[1]"])
def test_broken_configurations_are_named(folder, file, content):
    (folder / file).write_text(content)
    error = get_error(lambda: load_stable_diffusion(str(folder)))
    assert error.startswith(f"model.name={folder}: {file} ")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_missing_and_damaged_parts_are_named(folder, part):
    backup = shutil.copytree(folder / part, folder.parent / "part")
    shutil.rmtree(folder / part)
    assert f"model.name={folder}: no {part}/" in get_error(lambda: load_stable_diffusion(str(folder)))
    shutil.copytree(backup, folder / part)
    if part in WEIGHTS:
        weights = (backup / WEIGHTS[part]).read_bytes()
        for damaged in (weights[:4], weights[:100], weights[:-1]):
            (folder / part / WEIGHTS[part]).write_bytes(damaged)
            assert "not a safetensors file" in get_error(lambda: load_stable_diffusion(str(folder)))
    elif part == "tokenizer":
        for file in (folder / part).glob("*.json"):
            file.write_text("{")
        assert "tokenizer" in get_error(lambda: load_stable_diffusion(str(folder)))


def test_weights_that_lack_tensors_or_have_other_shapes_are_refused(folder):
    file = folder / "unet" / WEIGHTS["unet"]
    tensors = load_file(file)
    save_file({key: tensor for key, tensor in tensors.items() if key != "conv_in.weight"}, file)
    assert "unet/ lack conv_in.weight" in get_error(lambda: load_stable_diffusion(str(folder)))
    save_file(tensors | {"conv_in.weight": torch.zeros(2, 4, 3, 3)}, file)
    assert "unet/ cannot be loaded" in get_error(lambda: load_stable_diffusion(str(folder)))


def save_variant(folder: Path, part: str, variant: str, keep: bool = False) -> None:
    source = folder / part / WEIGHTS[part]
    tensors = {key: tensor.half() for key, tensor in load_file(source).items()}
    save_file(tensors, source.with_suffix(f".{variant}.safetensors"), {"format": "pt"})
    if not keep:
        source.unlink()


def test_a_folder_with_only_fp16_variants_opens_in_fp32(folder):
    for part in WEIGHTS:
        save_variant(folder, part, "fp16")
    for variant in (None, "fp16"):
        model = load_stable_diffusion(str(folder), variant=variant)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    plain = load_file(TINY_SD / "unet" / WEIGHTS["unet"])["conv_in.weight"]
    assert torch.equal(model.unet.conv_in.weight, plain.half().float())
    assert "model.variant=ema: " in get_error(lambda: load_stable_diffusion(str(folder), variant="ema"))
    weights = folder / "unet" / WEIGHTS["unet"]
    shutil.copy(weights.with_suffix(".fp16.safetensors"), weights.with_suffix(".ema.safetensors"))
    assert "has ema, fp16; choose one" in get_error(lambda: load_stable_diffusion(str(folder)))


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("part", WEIGHTS)
def test_sharded_weights_of_every_network_load_with_equal_bits(folder, part, variant):
    model = load_stable_diffusion("tiny-sd")
    (folder / part / WEIGHTS[part]).unlink()
    network = model.clip_l if part == "text_encoder" else getattr(model, part)
    network.half().save_pretrained(folder / part, variant=variant, max_shard_size="100KB")
    assert len(list((folder / part).glob("*-of-*.safetensors"))) > 1
    loaded = load_stable_diffusion(str(folder))
    loaded = loaded.clip_l if part == "text_encoder" else getattr(loaded, part)
    assert all(torch.equal(network.state_dict()[key].float(), weight) for key, weight in loaded.state_dict().items())


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize(
    ("part", "entries"),
    [
        ("unet", {"block_out_channels": 3}),
        ("unet", {"down_block_types": ["Evil"]}),
        ("vae", {"block_out_channels": "x"}),
        ("text_encoder", {"num_hidden_layers": "many"}),
    ],
)
def test_configurations_that_no_network_can_be_built_from_are_named(folder, part, entries, weights):
    change(folder / part / "config.json", **entries)
    assert f"model.name={folder}: {part}/ cannot be loaded (" in get_error(
        lambda: load_stable_diffusion(str(folder), weights=weights)
    )


def test_random_weights_and_extraction_have_the_same_checks(folder):
    change(folder / "unet/config.json", in_channels=9)
    assert "inpainting" in get_error(lambda: load_stable_diffusion(str(folder), weights="random"))
    assert get_error(lambda: load_model_or_run(str(folder), "tuned")).startswith("tuned=")


def test_training_names_the_base_before_it_reads_an_image(folder, run):
    change(folder / "unet/config.json", in_channels=9)
    options = ("model=tiny", f"model.name={folder}", "data=folder", "data.path=nowhere", "steps=1")
    assert "inpainting" in get_error(lambda: run(*options))
