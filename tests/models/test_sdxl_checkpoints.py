"""Files and folders of Stable Diffusion 2 and XL open in plain diffusers and again here with equal bits."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from sdft.models.checkpoint_file import read_checkpoint_header
from sdft.models.loading import load_pretrained, load_stable_diffusion
from sdft.models.saving import save_pipeline
from sdft.models.single_file import save_single_file

PIPELINES = {"sd21": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


@pytest.fixture
def build(small_model_folder):
    """A function that builds a small model with the same random weights every time."""

    def build(architecture: str, **options):
        torch.manual_seed(0)
        return load_stable_diffusion(str(small_model_folder(architecture)), weights="random", **options)

    return build


def assert_equal_weights(model, networks: dict) -> None:
    """Equal bits in every network of a model or of the components of a pipeline."""
    for name, network in {"vae": model.vae, **model.components}.items():
        expected, weights = (
            {key.removeprefix("text_model."): weight for key, weight in part.state_dict().items()}
            for part in (network, networks[name])
        )
        assert expected.keys() == weights.keys(), name
        assert all(torch.equal(expected[key], weights[key]) for key in expected), name


def get_networks(model) -> dict:
    return {"vae": model.vae, **model.components}


def test_a_file_of_stable_diffusion_xl_opens_in_diffusers_and_here_with_equal_bits(build, small_model_folder, tmp_path):
    file, folder = tmp_path / "x.safetensors", str(small_model_folder("sdxl"))
    model = build("sdxl")
    save_single_file(model, file, torch.float32, {})
    save_pipeline(model, tmp_path / "configs")
    pipeline = StableDiffusionXLPipeline.from_single_file(file, config=str(tmp_path / "configs"), local_files_only=True)
    assert_equal_weights(model, pipeline.components)
    assert pipeline.config.force_zeros_for_empty_prompt
    loaded = load_stable_diffusion(str(file), architecture=folder)
    assert_equal_weights(model, get_networks(loaded))
    assert loaded.empty_caption == "zeros" and loaded.prediction_type == "epsilon"
    assert load_stable_diffusion(str(file), architecture=folder, empty_caption="encoded").empty_caption == "encoded"
    tensors = load_file(file)
    assert not {"v_pred", "ztsnr"} & tensors.keys()
    save_file(tensors | {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}, file)  # as in NoobAI's files
    loaded = load_stable_diffusion(str(file), architecture=folder)
    assert loaded.empty_caption == "encoded"
    assert loaded.prediction_type == "v_prediction" and loaded.noise_process.has_zero_terminal_snr


def test_a_written_file_keeps_the_noise_process(build, small_model_folder, tmp_path):
    file, folder = tmp_path / "x.safetensors", str(small_model_folder("sdxl"))
    model = build("sdxl", prediction_type="v_prediction", zero_terminal_snr=True)
    save_single_file(model, file, torch.float16, {})
    header = read_checkpoint_header(file)
    assert {"v_pred", "ztsnr"} <= header.shapes.keys()  # which other tools read
    assert header.metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert header.metadata["modelspec.resolution"] == "32x32"
    loaded = load_stable_diffusion(str(file), architecture=folder)
    assert loaded.prediction_type == "v_prediction"
    assert torch.equal(loaded.noise_process.alphas_cumprod, model.noise_process.alphas_cumprod)


def test_another_autoencoder_replaces_that_of_a_file(build, small_model_folder, tmp_path):
    file, options = tmp_path / "x.safetensors", {"architecture": str(small_model_folder("sdxl"))}
    model, other = build("sdxl"), build("sd21")
    save_single_file(model, file, torch.float32, {})
    tensors, prefix = load_file(file), "first_stage_model."
    vae = {key.removeprefix(prefix): weight + 1 for key, weight in tensors.items() if key.startswith(prefix)}
    save_file(vae, tmp_path / "vae.safetensors")
    save_file({key: weight for key, weight in tensors.items() if not key.startswith(prefix)}, file)
    with pytest.raises(ValueError, match="has no autoencoder; give model.vae"):
        load_stable_diffusion(str(file), **options)
    loaded = load_stable_diffusion(str(file), vae=str(tmp_path / "vae.safetensors"), **options)
    for weight, changed in zip(model.vae.parameters(), loaded.vae.parameters(), strict=True):
        assert torch.equal(weight + 1, changed)
    other.vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="scaling_factor 0.18215, but the base 0.13025"):
        load_stable_diffusion(str(file), vae=str(tmp_path / "vae"), **options)


@pytest.mark.parametrize(("architecture", "empty_caption"), [("sd21", None), ("sdxl", "encoded")])
def test_a_saved_folder_opens_in_diffusers_and_here_with_equal_bits(build, tmp_path, architecture, empty_caption):
    model = build(architecture, empty_caption=empty_caption)
    save_pipeline(model, tmp_path / "pipeline")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "pipeline", local_files_only=True)
    assert type(pipeline).__name__ == PIPELINES[architecture]
    assert_equal_weights(model, pipeline.components)
    loaded = load_pretrained(str(tmp_path / "pipeline"))
    assert_equal_weights(model, get_networks(loaded))
    assert loaded.prediction_type == model.prediction_type
    assert torch.equal(loaded.noise_process.alphas_cumprod, model.noise_process.alphas_cumprod)
    for component in model.component_names.values():
        if component.startswith("text_encoder"):  # as transformers 4 calls them
            keys = load_file(tmp_path / "pipeline" / component / "model.safetensors").keys()
            others = {key for key in keys if not key.startswith("text_model.")}
            assert others == ({"text_projection.weight"} if component == "text_encoder_2" else set())
    if empty_caption:
        assert loaded.empty_caption == empty_caption and not pipeline.config.force_zeros_for_empty_prompt


def test_sharded_fp16_variants_of_every_network_open_in_fp32(build, tmp_path):
    pipeline = build("sdxl").build_pipeline().to(dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "model", variant="fp16", max_shard_size="30KB")
    files = [file.relative_to(tmp_path / "model").as_posix() for file in (tmp_path / "model").rglob("*.safetensors")]
    assert all(re.search(r"\.fp16[.-]", file) for file in files)
    loaded = load_pretrained(str(tmp_path / "model"))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    for name, network in get_networks(loaded).items():
        assert sum(file.startswith(f"{name}/") for file in files) > 1
        expected = getattr(pipeline, name).state_dict()
        assert all(torch.equal(expected[key].float(), weight) for key, weight in network.state_dict().items())


MEASURE_PEAK = r"""
import re, sys
from pathlib import Path
from sdft.models.loading import load_stable_diffusion

def read(name):
    return int(re.search(name + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

file, architecture, small_file, small_architecture = sys.argv[1:]
load_stable_diffusion(small_file, architecture=small_architecture)  # imports
before = read("VmRSS")
model = load_stable_diffusion(file, architecture=architecture)
print(read("VmHWM") - before, sum(weight.numel() * 4 for weight in model.parameters()) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_is_never_twice_in_memory(build, small_model_folder, tmp_path):
    wide = {"block_out_channels": [128, 512], "transformer_layers_per_block": [1, 3], "norm_num_groups": 32}
    folder = shutil.copytree(small_model_folder("sdxl"), tmp_path / "wide")
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | wide))
    names = []
    for architecture in (folder, small_model_folder("sdxl")):
        model = load_stable_diffusion(str(architecture), weights="random")
        save_single_file(model, tmp_path / f"{len(names)}.safetensors", torch.float32, {})
        names += [tmp_path / f"{len(names)}.safetensors", architecture]
    output = subprocess.run(
        [sys.executable, "-c", MEASURE_PEAK, *map(str, names)], check=True, capture_output=True, text=True
    ).stdout
    peak, size = map(int, output.split())
    assert size > 200 * 1024 and peak < 1.1 * size + 130 * 1024  # building modules costs 100 MB, of whatever size
