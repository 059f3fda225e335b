"""LoRA files that other tools open: the diffusers format and the kohya format, both with alpha, and back."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdft.equivalent import Product, products
from sdft.files import whole
from sdft.layout import check_tensors

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
CLIP_ROOT = "text_model."  # what every LoRA file puts before the text encoder's layers
UNTOLD = ("task_type", "runtime_config", "base_model_name_or_path")  # the last is a folder of this machine
KOHYA_PREFIX = {"unet": "lora_unet", "text_encoder": "lora_te"}


def save_lora(adapters: dict[str, "Adapter"], folder: Path, name: str, about: dict[str, str] | None = None) -> None:
    """Write `pytorch_lora_weights.safetensors` (diffusers) and `NAME-kohya.safetensors`, fp32, each whole or not at all.

    `about` is further metadata of both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {DIFFUSERS_FILE: diffusers_format(adapters), f"{name}-kohya.safetensors": kohya_format(adapters, name)}
    for file, (tensors, metadata) in files.items():
        write(folder / file, tensors, metadata | (about or {}))


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    plain = {key: tensor.detach().cpu().float().contiguous() for key, tensor in tensors.items()}
    with whole(path) as file:
        file.write_bytes(save(plain, metadata={"format": "pt", **metadata}))  # readable by whom the umask allows


@dataclass
class Adapter:
    """What one part of a model has learned, as files hold it.

    `tensors` are called `LAYER.lora_A.weight` and so on; `settings` are peft's; `shapes` those of the adapted weights by layer.
    """

    tensors: dict[str, Tensor]
    settings: dict
    shapes: dict[str, tuple[int, ...]]

    @property
    def rank(self) -> int:
        return self.settings["r"]

    @property
    def alpha(self) -> float:
        """What readers divide by the rank: a rank-stabilised adapter's is alpha * sqrt(rank)."""
        return float(self.settings["lora_alpha"]) * (math.sqrt(self.rank) if self.settings["use_rslora"] else 1)


def trained(part: str, module: nn.Module, name: str = "default") -> Adapter:
    """The LoRA of one part as it is."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(module, adapter_name=name, save_embedding_layers=False)
    shapes = {split(key)[0]: tuple(module.get_submodule(split(key)[0]).weight.shape) for key in tensors}
    return in_files(part, tensors, module.peft_config[name].to_dict(), shapes)


def plain(part: str, module: nn.Module, start: dict[str, Product] | None = None) -> Adapter:
    """The LoRA that changes the part as its adapter of another kind does.

    All layers have the rank of the one that needs most: readers of the kohya format mix up ranks that differ.
    """
    from peft import LoraConfig

    changes = products(module, start)
    shapes = {layer: tuple(module.get_submodule(layer).weight.shape) for layer in changes}
    rank, tensors = max(len(down) for _, down in changes.values()), {}
    for layer, (up, down) in changes.items():
        spare, beyond = rank - len(down), shapes[layer][2:]  # the latter is a convolution's kernel
        down, up = F.pad(down, (0, 0, 0, spare)), F.pad(up, (0, spare))
        tensors[f"{layer}.lora_A.weight"] = down.reshape(rank, -1, *beyond)
        tensors[f"{layer}.lora_B.weight"] = up.reshape(-1, rank, *[1] * len(beyond))
    return in_files(part, tensors, LoraConfig(r=rank, lora_alpha=rank, target_modules=list(changes)).to_dict(), shapes)


def in_files(part: str, tensors: dict[str, Tensor], settings: dict, shapes: dict[str, tuple]) -> Adapter:
    """The names that files use, which for the text encoder are not its own."""
    if part == "text_encoder":  # whose loader in transformers wants each tensor to be called a weight
        tensors = {
            CLIP_ROOT + key.removeprefix(CLIP_ROOT) + ".weight" * key.endswith("vector"): weight
            for key, weight in tensors.items()
        }
        shapes = {CLIP_ROOT + layer.removeprefix(CLIP_ROOT): shape for layer, shape in shapes.items()}
    return Adapter(tensors, settings, shapes)


def diffusers_format(adapters: dict[str, Adapter]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """peft names below the part's name, with the adapter's configuration, alpha among it, as metadata."""
    tensors, config = {}, {}
    for part, adapter in adapters.items():
        tensors |= {f"{part}.{key}": weight for key, weight in adapter.tensors.items()}
        settings = adapter.settings | {"target_modules": sorted(adapter.settings["target_modules"])}
        config |= {f"{part}.{key}": v for key, v in settings.items() if v is not None and key not in UNTOLD}
    return tensors, {"lora_adapter_metadata": json.dumps(config, default=str, sort_keys=True)}


def kohya_format(adapters: dict[str, Adapter], name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`lora_unet_LAYER.lora_down.weight`, `.lora_up.weight`, `.alpha`, dots in layer names written as underscores."""
    tensors = {}
    for part, adapter in adapters.items():
        for key, weight in adapter.tensors.items():
            layer, kind = split(key)
            flat = f"{KOHYA_PREFIX[part]}_{layer.replace('.', '_')}"
            if kind == "lora_magnitude_vector":  # one magnitude an output, shaped like the layer's weight
                weight = weight.reshape(-1, *[1] * (len(adapter.shapes[layer]) - 1))
            tensors[f"{flat}.{KOHYA_KINDS[kind]}"] = weight
            tensors[f"{flat}.alpha"] = torch.tensor(adapter.alpha)
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(adapter.rank for adapter in adapters.values())),
        "ss_network_alpha": str(max(adapter.alpha for adapter in adapters.values())),
        "ss_output_name": name,
    }
    return tensors, metadata


KOHYA_KINDS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}


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


def load_lora(model, path: Path, name: str = "default") -> None:
    """Load a diffusers or kohya file as the adapter `name`; every tensor must find its layer, or `ValueError`."""
    from safetensors.torch import load_file

    file = lora_file(path)
    check_tensors(file, "adapter")
    given = load_file(file)
    if any(key.endswith(".dora_scale") for key in given):
        raise ValueError(
            f"adapter={file}: a DoRA in the kohya format, which diffusers does not open; give {DIFFUSERS_FILE}"
        )
    layers = layer_names(model)
    unknown = sorted(key for key in given if owner(key) not in layers)
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ValueError(f"adapter={file}: {unknown[0]}{more} fits no layer of {model.name}")
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it warns of parts that have no adapter
    try:
        model.pipeline().load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    except (RuntimeError, ValueError) as error:  # shapes that differ, tensors without their partner
        raise ValueError(f"adapter={file}: does not fit {model.name} ({' '.join(str(error).split())})") from None
    parts = {p: trained(p, net, name) for p, net in model.parts.items() if name in getattr(net, "peft_config", {})}
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
