"""The files that `save_lora` writes, in the readers of other tools as `scripts/compatibility_readers.py` restates them."""

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from scripts.compatibility import PACKAGES, compute_error
from scripts.compatibility_files import KINDS, RESIZED_KIND, list_weights, merge_adapter
from scripts.compatibility_readers import READERS
from sdft.methods.lora import LoRA

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
    model, method = tiny(), LoRA(rank=4, alpha=6.0, **TARGETS | OPTIONS[request.param])
    method.prepare(model)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp(request.param)
    method.save(model, folder, "mine")
    return request.param, folder, merge_adapter(model, base)


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


def test_the_page_has_all_kinds_and_readers():
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert all(f"| {kind} |" in page for kind in (*KINDS, RESIZED_KIND))
    assert all(f" {reader} |" in page for reader in (*PACKAGES, *READERS))
