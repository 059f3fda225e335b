"""How sd-scripts, ComfyUI, A1111 and LyCORIS read a LoRA file of Stable Diffusion 1 or XL: their key names and formulas.

Each reader maps the tensors of a file and the base weights `[out, in, ...]` by `part.layer` to the changes of the weights.
sd-scripts: networks/lora.py, library/sdxl_original_unet.py. ComfyUI: comfy/lora.py, comfy/weight_adapter (0.3).
A1111: extensions-builtin/Lora (1.10). LyCORIS: lycoris/modules/locon.py (3).
"""

import re
from functools import partial

import torch
from torch import Tensor

Weights = dict[str, Tensor]
SD1_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
SDXL_PREFIXES = {
    "unet": "lora_unet_",
    "text_encoder": "lora_te1_text_model_",
    "text_encoder_2": "lora_te2_text_model_",
}
BLOCK_LAYER = re.compile(r"\.(attentions|resnets|downsamplers|upsamplers|self_attn|mlp)\.")
SDXL_BLOCK = re.compile(r"(down|mid|up)_blocks?\.(?:(\d)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)")
SDXL_RESNET_LAYERS = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def to_kohya_name(name: str, base: Weights) -> str:
    part, _, layer = name.partition(".")
    if not any(key.startswith("text_encoder_2.") for key in base):
        return SD1_PREFIXES[part] + layer.replace(".", "_")
    return SDXL_PREFIXES[part] + to_sdxl_layer(layer).replace(".", "_")


def to_sdxl_layer(layer: str) -> str:
    """The name of a layer in the original blocks of SDXL, three of which make one of diffusers; others unchanged."""
    match = SDXL_BLOCK.match(layer)
    if match is None:
        return layer
    side, block, kind, number = match[1], int(match[2] or 0), match[3], int(match[4])
    inner = SDXL_RESNET_LAYERS.get(match[5], match[5])
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{inner}"
    if kind == "downsamplers":
        return f"input_blocks.{3 * block + 3}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{3 * block + 2}.2.conv"
    original = f"input_blocks.{3 * block + number + 1}" if side == "down" else f"output_blocks.{3 * block + number}"
    return f"{original}.{int(kind == 'attentions')}.{inner}"


def multiply(up: Tensor, down: Tensor, weight: Tensor) -> Tensor:
    return (up.double().flatten(1) @ down.double().flatten(1)).reshape(weight.shape)


def find_kohya_layers(tensors: Weights, base: Weights) -> dict[str, tuple[Tensor, float, Tensor | None]]:
    """Per layer the product of the factors, alpha / rank, and `dora_scale`; only layers of attention and ResNet blocks."""
    layers = {}
    for name, weight in base.items():
        key = to_kohya_name(name, base)
        if BLOCK_LAYER.search(name) and f"{key}.lora_down.weight" in tensors:
            up, down = tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"]
            alpha = tensors.get(f"{key}.alpha", torch.tensor(len(down)))
            layers[name] = multiply(up, down, weight), float(alpha) / len(down), tensors.get(f"{key}.dora_scale")
    return layers


def read_as_sd_scripts(tensors: Weights, base: Weights) -> Weights:
    """`dora_scale` is not loaded."""
    return {name: scale * change for name, (change, scale, _) in find_kohya_layers(tensors, base).items()}


def read_with_magnitudes(tensors: Weights, base: Weights, dimension: int) -> Weights:
    """DoRA magnitudes divide by the norms of the rows (dimension 0, per output) or columns (1, per input)."""
    changes = {}
    for name, (change, scale, magnitude) in find_kohya_layers(tensors, base).items():
        adapted = base[name].double() + scale * change
        if magnitude is not None:
            adapted = adapted * (magnitude.double() / compute_norms(adapted, dimension))
        changes[name] = adapted - base[name].double()
    return changes


def read_as_comfyui(tensors: Weights, base: Weights) -> Weights:
    """kohya names, and diffusers names with `.processor.` before attention projections; without alpha the scale is 1.

    DoRA magnitudes per output divide by the norms of the base weight.
    """
    changes = {}
    for name, weight in base.items():
        for key, suffixes in list_comfyui_keys(name, base):
            if key + suffixes[0] not in tensors:
                continue
            up, down = (tensors[key + suffix] for suffix in suffixes)
            alpha, magnitude = tensors.get(f"{key}.alpha"), tensors.get(f"{key}.dora_scale")
            scale = 1.0 if alpha is None else float(alpha) / len(down)
            adapted = weight.double() + scale * multiply(up, down, weight)
            if magnitude is not None:
                is_output = len(magnitude) == len(weight)
                norms = compute_norms(weight.double() if is_output else adapted, dimension=0 if is_output else 1)
                adapted = adapted * (magnitude.double() / norms)
            changes[name] = adapted - weight.double()
    return changes


def list_comfyui_keys(name: str, base: Weights) -> list[tuple[str, tuple[str, str]]]:
    """Key prefixes of a layer with the suffixes of its factors."""
    peft = (".lora_B.weight", ".lora_A.weight")
    kohya = (to_kohya_name(name, base), (".lora_up.weight", ".lora_down.weight"))
    part, _, layer = name.partition(".")
    if part != "unet":
        return [kohya, (f"{part}.text_model.{layer}", peft)]
    key = name.replace(".to_", ".processor.to_").removesuffix(".0" if name.endswith(".to_out.0") else "\0")
    return [kohya, (key, ("_lora.up.weight", "_lora.down.weight")), (key, peft)]


def compute_norms(weight: Tensor, dimension: int) -> Tensor:
    """Norms over all other dimensions, in a shape that divides the weight."""
    return torch.linalg.vector_norm(weight, dim=[n for n in range(weight.ndim) if n != dimension], keepdim=True)


READERS = {
    "sd-scripts": read_as_sd_scripts,
    "ComfyUI": read_as_comfyui,
    "A1111": partial(read_with_magnitudes, dimension=1),  # as in LyCORIS 2
    "LyCORIS": partial(read_with_magnitudes, dimension=0),  # as in the paper
}
