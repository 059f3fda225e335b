"""Adapter weights of one part of a model, under peft names and with peft settings."""

import math
from collections import Counter
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sdft.lora.families import is_text_encoder, normalize_layer_name
from sdft.lora.low_rank import LowRank, LowRankLayer
from sdft.lora.to_lora import compute_low_rank_updates
from sdft.models.clip_text_model import TEXT_MODEL_PREFIX

KOHYA_SUFFIXES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}


@dataclass
class AdapterState:
    """`tensors` by `LAYER.lora_A.weight` and so on; `settings` of peft; `shapes` of the adapted weights by layer."""

    tensors: dict[str, Tensor]
    settings: dict
    shapes: dict[str, tuple[int, ...]]

    @property
    def rank(self) -> int:
        """The highest rank of a layer."""
        return max(len(tensor) for key, tensor in self.tensors.items() if key.endswith("lora_A.weight"))

    def compute_alphas(self) -> dict[str, float]:
        """Alpha by layer, to be divided by the rank: alpha * sqrt(rank) for a rank-stabilized adapter."""
        patterns, alphas = self.settings.get("alpha_pattern") or {}, {}
        for layer in {split_tensor_name(key)[0] for key in self.tensors}:
            alpha = patterns.get(to_peft_pattern(layer), self.settings["lora_alpha"])
            rank = len(self.tensors[f"{layer}.lora_A.weight"])
            alphas[layer] = float(alpha) * (math.sqrt(rank) if self.settings["use_rslora"] else 1)
        return alphas


def get_adapter_state(part: str, module: nn.Module, name: str = "default") -> AdapterState:
    """The LoRA of one part, unchanged."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(module, adapter_name=name, save_embedding_layers=False)
    shapes = {
        split_tensor_name(key)[0]: tuple(module.get_submodule(split_tensor_name(key)[0]).weight.shape)
        for key in tensors
    }
    return normalize_adapter_state(part, tensors, module.peft_config[name].to_dict(), shapes)


def convert_to_lora(part: str, module: nn.Module, initial: dict[str, LowRank] | None = None) -> AdapterState:
    """The LoRA equivalent to the part's adapter of another type, less the `initial` updates.

    All layers are padded to the highest rank: readers of the kohya format mishandle different ranks.
    """
    from peft import LoraConfig

    updates = compute_low_rank_updates(module, initial)
    shapes = {layer: tuple(module.get_submodule(layer).weight.shape) for layer in updates}
    rank, tensors = max(len(down) for _, down in updates.values()), {}
    for layer, (up, down) in updates.items():
        padding, kernel = rank - len(down), shapes[layer][2:]
        down, up = pad_rank(down, "lora_A.weight", padding), pad_rank(up, "lora_B.weight", padding)
        tensors[f"{layer}.lora_A.weight"] = down.reshape(rank, -1, *kernel)
        tensors[f"{layer}.lora_B.weight"] = up.reshape(-1, rank, *[1] * len(kernel))
    return normalize_adapter_state(
        part, tensors, LoraConfig(r=rank, lora_alpha=rank, target_modules=list(updates)).to_dict(), shapes
    )


def pad_rank(weight: Tensor, kind: str, padding: int) -> Tensor:
    """A factor with `padding` more ranks, which are zero; other tensors unchanged."""
    dimension = {"lora_A.weight": 0, "lora_B.weight": 1}.get(kind)
    if not padding or dimension is None:
        return weight
    return F.pad(weight, (*[0, 0] * (weight.ndim - 1 - dimension), 0, padding))


def build_adapter_state(part: str, layers: dict[str, LowRankLayer]) -> AdapterState:
    """Adapter weights from layers; peft patterns hold the ranks and alphas that differ from the most common ones."""
    from peft import LoraConfig

    tensors = {}
    for name, layer in layers.items():
        tensors |= {f"{name}.lora_A.weight": layer.down, f"{name}.lora_B.weight": layer.up}
        if layer.magnitude is not None:
            size = [-1] if layer.down.ndim == 2 else [1, -1, 1, 1]
            magnitude_name = f"{name}.lora_magnitude_vector" + ".weight" * is_text_encoder(part)
            tensors[magnitude_name] = layer.magnitude.reshape(size)
    if invalid := [name for name, layer in layers.items() if layer.has_input_norms]:
        raise ValueError(
            f"{invalid[0]} is DoRA with norms of inputs, which no format written here holds; sdft "
            "convert base=MODEL rank=32 finds the nearest LoRA"
        )
    dora_layers = [name for name, layer in layers.items() if layer.magnitude is not None]
    if dora_layers and len(dora_layers) < len(layers):
        lora_layer = min(set(layers) - set(dora_layers))
        raise ValueError(
            f"{dora_layers[0]} is DoRA and {lora_layer} is LoRA: one part cannot mix them in a file; "
            "sdft convert base=MODEL rank=32 finds the nearest LoRA"
        )
    common = {
        key: Counter(getattr(layer, key) for layer in layers.values()).most_common(1)[0][0] for key in ("rank", "alpha")
    }
    patterns = {
        key: {to_peft_pattern(n): getattr(layer, key) for n, layer in layers.items() if getattr(layer, key) != value}
        for key, value in common.items()
    }
    settings = LoraConfig(
        r=common["rank"],
        lora_alpha=common["alpha"],
        rank_pattern=patterns["rank"],
        alpha_pattern=patterns["alpha"],
        target_modules=[name.removeprefix(TEXT_MODEL_PREFIX) for name in layers],
        use_dora=bool(dora_layers),
    )
    return AdapterState(tensors, settings.to_dict(), {name: layer.shape for name, layer in layers.items()})


def to_peft_pattern(layer: str) -> str:
    """The peft pattern of one layer; only some versions of transformers have the prefix of the text encoder."""
    return layer.removeprefix(TEXT_MODEL_PREFIX) if layer.startswith(TEXT_MODEL_PREFIX) else f"^{layer}"


def normalize_adapter_state(
    part: str, tensors: dict[str, Tensor], settings: dict, shapes: dict[str, tuple]
) -> AdapterState:
    """Rename the tensors of a text encoder to their names in files."""
    if is_text_encoder(part):  # its loader in transformers requires that every name ends in `.weight`
        tensors = {
            normalize_layer_name(part, key) + ".weight" * key.endswith("vector"): weight
            for key, weight in tensors.items()
        }
        shapes = {normalize_layer_name(part, layer): shape for layer, shape in shapes.items()}
    return AdapterState(tensors, settings, shapes)


def split_tensor_name(key: str) -> tuple[str, str]:
    """`LAYER.lora_A.weight` to (`LAYER`, `lora_A.weight`)."""
    for kind in KOHYA_SUFFIXES:
        for suffix in (f".{kind}", f".{kind}.weight"):
            if key.endswith(suffix):
                return key.removesuffix(suffix), kind
    raise AssertionError(f"unknown adapter tensor {key}")
