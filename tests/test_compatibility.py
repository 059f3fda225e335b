"""The files that `save_lora` writes, in the readers of other tools as `scripts/compatibility_readers.py` restates them."""

from copy import deepcopy

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from small_models import SMALL_MODELS, write_configs

from scripts.compatibility import PACKAGES, compute_error
from scripts.compatibility_files import KINDS, MODELS, RESIZED_KIND, list_weights, merge_adapter
from scripts.compatibility_readers import BLOCK_LAYER, READERS, to_kohya_name
from sdft.lora.architecture import list_architectures
from sdft.methods.lora import LoRA
from sdft.models.loading import load_stable_diffusion

TARGETS = {"unet_targets": ["to_q", "to_out.0", "conv1", "ff.net.2"], "text_encoder_targets": ["q_proj", "fc1"]}
OPTIONS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "loha": {"adapter_type": "loha"},
    "lokr": {"adapter_type": "lokr"},
    "pissa": {"init_lora_weights": "pissa", "unet_targets": ["to_q", "to_out.0", "ff.net.2"]},
    "dora": {"use_dora": True},
}


@pytest.fixture(scope="module")
def base(tiny):
    return tiny()


@pytest.fixture(scope="module", params=OPTIONS)
def adapter(request, tiny, base, tmp_path_factory):
    """The kind, its folder, and the change of the weights."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, write_adapter(tiny(), base, folder, **TARGETS | OPTIONS[request.param])


def write_adapter(model, base, folder, **options) -> dict:
    """Save a random adapter on `model`, which has the weights of `base`; return the change of the weights."""
    method = LoRA(rank=4, alpha=6.0, text_encoder=True, **options)
    method.prepare(model)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    method.save(model, folder, "mine")
    return merge_adapter(model, base)


def read_error(base, reader: str, file, expected: dict) -> float | None:
    weights = {key.removesuffix(".weight"): weight for key, weight in list_weights(base).items() if weight.ndim > 1}
    weights = {key: weight for key, weight in weights.items() if not key.startswith("vae.")}
    return compute_error(READERS[reader](load_file(file), weights), expected)


@pytest.mark.parametrize("reader", READERS)
def test_the_kohya_file_is_exact_in_every_tool_except_dora(base, adapter, reader):
    kind, folder, expected = adapter
    error = read_error(base, reader, folder / "mine-kohya.safetensors", expected)
    assert error > 0.05 if kind == "dora" and reader != "LyCORIS" else error < 1e-4


def test_comfyui_reads_the_layers_that_it_knows_of_the_diffusers_file_at_full_strength(base, adapter):
    kind, folder, expected = adapter
    known = {key: change for key, change in expected.items() if ".to_" not in key}
    error = read_error(base, "ComfyUI", folder / "pytorch_lora_weights.safetensors", known)
    assert error < 1e-4 or kind == "dora"


def test_the_readers_and_the_kohya_file_have_the_same_names_of_all_layers_in_blocks_of_sdxl():
    (sdxl,) = list_architectures("sdxl")
    names = {
        f"{part}.{layer.removeprefix('text_model.')}": sdxl.get_kohya_name(part, layer)
        for part, layers in sdxl.shapes.items()
        for layer in layers
    }
    assert sum(map(bool, map(BLOCK_LAYER.search, names))) > 722 + 264  # layers of attention, and of ResNet blocks
    assert all(to_kohya_name(name, names) == key for name, key in names.items() if BLOCK_LAYER.search(name))


def test_every_tool_reads_both_text_encoders_and_the_blocks_of_the_kohya_file_of_sdxl(tmp_path):
    changes = SMALL_MODELS["sdxl"] | {
        "unet/config.json": SMALL_MODELS["sdxl"]["unet/config.json"] | {"layers_per_block": 2}
    }
    configs = write_configs("sdxl", tmp_path / "configs", changes)
    base = load_stable_diffusion(str(configs), weights="random")
    expected = write_adapter(deepcopy(base), base, tmp_path, **TARGETS)
    assert {name.partition(".")[0] for name in expected} == {"unet", "text_encoder", "text_encoder_2"}
    for reader in READERS:
        assert read_error(base, reader, tmp_path / "mine-kohya.safetensors", expected) < 1e-4


def test_the_page_has_all_models_kinds_and_readers():
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert all(page.count(f"\n{model}:\n") == 3 for model in MODELS)
    assert all(f"| {kind} |" in page for kind in (*KINDS, RESIZED_KIND))
    assert all(reader.replace(", ", " with ") in page for reader in PACKAGES)
    assert all(f" {reader.partition(',')[0]} |" in page for reader in (*PACKAGES, *READERS))
