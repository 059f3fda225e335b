"""LoRA files that other tools open: the diffusers format and the kohya format, both with alpha, and back."""

import json
import math
import os
from pathlib import Path

import torch
from torch import Tensor, nn

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
CLIP_ROOT = "text_model."  # what every LoRA file puts before the text encoder's layers
UNTOLD = ("task_type", "runtime_config", "base_model_name_or_path")  # the last is a folder of this machine
KOHYA_PREFIX = {"unet": "lora_unet", "text_encoder": "lora_te"}


def save_lora(parts: dict[str, nn.Module], folder: Path, name: str) -> None:
    """Write `pytorch_lora_weights.safetensors` (diffusers) and `NAME-kohya.safetensors`, fp32, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {DIFFUSERS_FILE: diffusers_format(parts), f"{name}-kohya.safetensors": kohya_format(parts, name)}
    for file, (tensors, metadata) in files.items():
        write(folder / file, tensors, metadata)


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    whole = {key: tensor.detach().cpu().float().contiguous() for key, tensor in tensors.items()}
    partial = path.with_name(f".{path.name}.partial")
    save_file(whole, partial, metadata={"format": "pt", **metadata})
    os.replace(partial, path)


def adapter(part: str, module: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights under the names that files use: `LAYER.lora_A.weight` and so on."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(module, save_embedding_layers=False)
    if part == "text_encoder":  # whose loader in transformers wants each tensor to be called a weight
        weights = {
            CLIP_ROOT + key.removeprefix(CLIP_ROOT) + ".weight" * key.endswith("vector"): weight
            for key, weight in weights.items()
        }
    return weights


def diffusers_format(parts: dict[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """peft names below the part's name, with the adapter's configuration, alpha among it, as metadata."""
    tensors, config = {}, {}
    for part, module in parts.items():
        tensors |= {f"{part}.{key}": weight for key, weight in adapter(part, module).items()}
        settings = module.peft_config["default"].to_dict()
        settings["target_modules"] = sorted(settings["target_modules"])
        config |= {f"{part}.{key}": v for key, v in settings.items() if v is not None and key not in UNTOLD}
    return tensors, {"lora_adapter_metadata": json.dumps(config, default=str, sort_keys=True)}


def kohya_format(parts: dict[str, nn.Module], name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`lora_unet_LAYER.lora_down.weight`, `.lora_up.weight`, `.alpha`, dots in layer names written as underscores.

    Readers scale by alpha / rank, so a rank-stabilised adapter's alpha is written as alpha * sqrt(rank).
    """
    tensors, ranks, alphas = {}, set(), set()
    for part, module in parts.items():
        settings = module.peft_config["default"]
        rank = settings.r
        alpha = settings.lora_alpha * (math.sqrt(rank) if settings.use_rslora else 1)
        ranks.add(rank), alphas.add(alpha)
        for key, weight in adapter(part, module).items():
            layer, kind = split(key)
            flat = f"{KOHYA_PREFIX[part]}_{layer.replace('.', '_')}"
            if kind == "lora_magnitude_vector":  # one magnitude an output, shaped like the layer's weight
                weight = weight.reshape(-1, *[1] * (module.get_submodule(layer_of(layer)).weight.ndim - 1))
            tensors[f"{flat}.{KOHYA_KINDS[kind]}"] = weight
            tensors[f"{flat}.alpha"] = torch.tensor(float(alpha))
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(ranks)),
        "ss_network_alpha": str(max(alphas)),
        "ss_output_name": name,
    }
    return tensors, metadata


KOHYA_KINDS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}


def layer_of(name: str) -> str:
    """The module's own name of a layer, without what files put before it."""
    return name.removeprefix(CLIP_ROOT)


def split(key: str) -> tuple[str, str]:
    """`LAYER.lora_A.weight` to (`LAYER`, `lora_A.weight`)."""
    for kind in KOHYA_KINDS:
        for ending in (f".{kind}", f".{kind}.weight"):
            if key.endswith(ending):
                return key.removesuffix(ending), kind
    raise AssertionError(f"unknown adapter tensor {key}")


def lora_file(path: Path) -> Path:
    """The file meant by a path: itself, or the diffusers file of a folder or of its `adapter/`."""
    for candidate in (path, path / DIFFUSERS_FILE, path / "adapter" / DIFFUSERS_FILE):
        if candidate.is_file():
            return candidate
    raise ValueError(f"adapter={path}: no such LoRA file, and no folder with {DIFFUSERS_FILE} in it")


def load_lora(model, path: Path) -> None:
    """Load a diffusers or kohya file into a model without adapters; every tensor must find its layer, or `ValueError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = lora_file(path)
    try:
        given = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"adapter={file}: not a safetensors file ({error})") from None
    if any(key.endswith(".dora_scale") for key in given):
        raise ValueError(
            f"adapter={file}: a DoRA in the kohya format, which diffusers does not open; give {DIFFUSERS_FILE}"
        )
    layers = layer_names(model)
    unknown = sorted(key for key in given if owner(key) not in layers)
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ValueError(f"adapter={file}: {unknown[0]}{more} fits no layer of {model.name}")
    try:
        model.pipeline().load_lora_weights(file.parent, weight_name=file.name, adapter_name="default")
    except (RuntimeError, ValueError) as error:  # shapes that differ, tensors without their partner
        raise ValueError(f"adapter={file}: does not fit {model.name} ({' '.join(str(error).split())})") from None
    parts = {part: module for part, module in model.parts.items() if hasattr(module, "peft_config")}
    loaded, _ = kohya_format(parts, "") if next(iter(given)).startswith("lora_") else diffusers_format(parts)
    expected = sum(not key.endswith(".alpha") for key in given)
    arrived = sum(not key.endswith(".alpha") for key in loaded)
    changed = [key for key in loaded if key in given and not torch.equal(loaded[key].float(), given[key].float())]
    if arrived != expected or changed:
        what = (
            f"{arrived} of {expected} tensors found their layer"
            if arrived != expected
            else f"{changed[0]} was not taken over"
        )
        raise ValueError(f"adapter={file}: does not fit {model.name} ({what})")
    model.requires_grad_(False).eval()


def layer_names(model) -> set[str]:
    """What may stand before `.lora_…` in a file, in both formats."""
    names = set()
    for part, module in model.parts.items():
        for layer, _ in module.named_modules():
            full = CLIP_ROOT + layer.removeprefix(CLIP_ROOT) if part == "text_encoder" else layer
            names |= {f"{part}.{layer}", f"{part}.{full}", f"{KOHYA_PREFIX[part]}_{full.replace('.', '_')}"}
    return names


def owner(key: str) -> str:
    """The layer that a tensor of a LoRA file belongs to."""
    for mark in (".lora", ".alpha", ".dora_scale"):
        if mark in key:
            return key[: key.index(mark)]
    return key
