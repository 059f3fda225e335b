"""DoRA files are read as their writer meant them: magnitudes of outputs or of inputs, by the shapes of the whole file."""

import pytest
import torch
from safetensors.torch import save_file

from sdft.lora.architecture import get_layer, list_architectures
from sdft.lora.file import read_lora_file
from sdft.lora.formats import load_lora
from sdft.lora.merging import find_nearest_lora, merge_lora_files
from sdft.lora.resizing import resize_lora_file
from sdft.lora.scaling import set_adapter_scales
from sdft.lora.state_dict import build_adapter_state

TINY = list_architectures("tiny-sd")
TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"  # 48 x 48
TO_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"  # 48 x 64
CONV = "down_blocks.0.resnets.0.conv1"  # 48 x 48 x 3 x 3
WIDE = "down_blocks.1.resnets.0.conv1"  # 96 x 48 x 3 x 3


def compute_norms(weight: torch.Tensor, inputs: bool) -> torch.Tensor:
    return (weight.transpose(0, 1) if inputs else weight).flatten(1).norm(dim=1)


def build_dora(model, layers: list[str], inputs: bool, style: str) -> tuple[dict, dict]:
    """Tensors of a DoRA with alpha 2 and rank 4, and the adapted weights by LyCORIS' and peft's formula in fp64."""
    rng, tensors, expected = torch.Generator().manual_seed(0), {}, {}
    for name in layers:
        weight = get_layer("unet", model.unet, name).weight.detach().double()
        kernel = weight.shape[2:]
        up = 0.1 * torch.randn(len(weight), 4, *[1] * len(kernel), generator=rng)
        down = 0.1 * torch.randn(4, *weight.shape[1:], generator=rng)
        adapted = weight + 2 / 4 * (up.flatten(1).double() @ down.flatten(1).double()).reshape(weight.shape)
        norms = compute_norms(adapted, inputs)
        magnitude = compute_norms(weight, inputs) * (0.5 + torch.rand(len(norms), generator=rng).double())
        broadcast = (1, -1, *[1] * len(kernel)) if inputs else (-1, 1, *[1] * len(kernel))
        has_magnitude = style != "one" or name == TO_Q
        expected[name] = adapted * (magnitude / norms).reshape(broadcast) if has_magnitude else adapted
        if style == "peft" and not inputs:  # vectors for linear layers, rows for convolutions
            broadcast = (1, -1, 1, 1) if kernel else (-1,)
        flat = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{flat}.lora_up.weight": up, f"{flat}.lora_down.weight": down, f"{flat}.alpha": torch.tensor(2.0)}
        if has_magnitude:
            tensors[f"{flat}.dora_scale"] = magnitude.float().reshape(broadcast)
    return tensors, expected


CASES = {
    "one DoRA layer beside LoRA": ([TO_Q, TO_K, CONV], False, "one"),
    "LyCORIS, inputs": ([TO_Q, CONV], True, "lycoris"),
    "LyCORIS, inputs, no linear layer": ([CONV, WIDE], True, "lycoris"),
    "LyCORIS, outputs": ([TO_Q, CONV, WIDE], False, "lycoris"),
    "peft, outputs": ([TO_Q, CONV], False, "peft"),
    "peft, outputs, no linear layer": ([CONV, WIDE], False, "peft"),
    "inputs of other width": ([TO_K, CONV], True, "lycoris"),
}


@pytest.mark.parametrize("case", CASES)
def test_dora_magnitudes_have_the_orientation_of_the_file(tiny, tmp_path, case):
    model = tiny()
    tensors, expected = build_dora(model, *CASES[case])
    save_file(tensors, tmp_path / "dora.safetensors")
    file = read_lora_file(tmp_path / "dora.safetensors", TINY)
    for (part, name), layer in file.layers.items():
        weight = get_layer(part, model.parts[part], name).weight
        torch.testing.assert_close(layer.apply_to(weight), expected[name], atol=1e-6, rtol=1e-6)
        assert torch.equal(layer.apply_to(weight, 0.0), weight.double())  # strength 0 is the base
    merged, loaded = tiny(), tiny()
    merge_lora_files(merged, [file], [0.0])
    assert all(torch.equal(x, y) for x, y in zip(merged.unet.parameters(), model.unet.parameters(), strict=True))
    merge_lora_files(merged, [file], [0.6])
    load_lora(loaded, file.path)
    set_adapter_scales(loaded, {"default": 0.6})
    inputs = torch.randn(2, 4, 4, 4), torch.tensor([10, 800]), model.condition_prompts(["a cat", "two"])
    with torch.no_grad():
        torch.testing.assert_close(loaded.predict(*inputs), merged.predict(*inputs), atol=1e-5, rtol=1e-5)


def test_a_dora_whose_orientation_cannot_be_known_is_refused(tiny, tmp_path):
    tensors, _ = build_dora(tiny(), [CONV], True, "lycoris")
    save_file(tensors, tmp_path / "dora.safetensors")
    with pytest.raises(
        ValueError, match=r"dora.safetensors: .*conv1: dora_scale \[1, 48, 1, 1\].*inputs or of outputs"
    ):
        read_lora_file(tmp_path / "dora.safetensors", TINY)
    flat = f"lora_unet_{CONV.replace('.', '_')}"  # peft's own name leaves no doubt
    tensors[f"{flat}.lora_magnitude_vector"] = tensors.pop(f"{flat}.dora_scale")
    save_file(tensors, tmp_path / "peft.safetensors")
    (layer,) = read_lora_file(tmp_path / "peft.safetensors", TINY).layers.values()
    assert not layer.has_input_norms


def test_input_norms_are_never_saved_as_norms_of_outputs(tiny, tmp_path):
    tensors, expected = build_dora(tiny(), [TO_Q, CONV], True, "lycoris")
    save_file(tensors, tmp_path / "dora.safetensors")
    file = read_lora_file(tmp_path / "dora.safetensors", TINY)
    for parts in (file.parts, resize_lora_file(file, 2, None).parts):
        with pytest.raises(ValueError, match="norms of inputs"):
            build_adapter_state("unet", parts["unet"])
    layers = find_nearest_lora(tiny(), file, 48).parts["unet"]  # the way out: exact at full rank
    for name, layer in layers.items():
        weight = get_layer("unet", tiny().unet, name).weight
        torch.testing.assert_close(layer.apply_to(weight), expected[name], atol=1e-5, rtol=1e-5)
