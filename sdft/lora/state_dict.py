"""What one part of a model has learned, under the names and with the settings of peft."""

import math
from collections import Counter
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sdft.lora.architecture import TEXT_MODEL_PREFIX, normalize_layer_name
from sdft.lora.low_rank import LowRank, LowRankLayer
from sdft.lora.to_lora import compute_low_rank_updates

KOHYA_SUFFIXES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}


@dataclass
class AdapterState:
    """What one part of a model has learned, as files hold it.

    `tensors` are called `LAYER.lora_A.weight` and so on; `settings` are peft's; `shapes` those of the adapted weights by layer.
    """

    tensors: dict[str, Tensor]
    settings: dict
    shapes: dict[str, tuple[int, ...]]

    @property
    def rank(self) -> int:
        """The highest of its layers."""
        return max(len(tensor) for key, tensor in self.tensors.items() if key.endswith("lora_A.weight"))

    def compute_alphas(self) -> dict[str, float]:
        """By layer, what readers divide by its rank: a rank-stabilised adapter's is alpha * sqrt(rank)."""
        patterns, found = self.settings.get("alpha_pattern") or {}, {}
        for layer in {split_tensor_name(key)[0] for key in self.tensors}:
            alpha = patterns.get(to_peft_pattern(layer), self.settings["lora_alpha"])
            rank = len(self.tensors[f"{layer}.lora_A.weight"])
            found[layer] = float(alpha) * (math.sqrt(rank) if self.settings["use_rslora"] else 1)
        return found


def get_adapter_state(part: str, module: nn.Module, name: str = "default") -> AdapterState:
    """The LoRA of one part as it is."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(module, adapter_name=name, save_embedding_layers=False)
    shapes = {
        split_tensor_name(key)[0]: tuple(module.get_submodule(split_tensor_name(key)[0]).weight.shape)
        for key in tensors
    }
    return normalize_adapter_state(part, tensors, module.peft_config[name].to_dict(), shapes)


def convert_to_lora(part: str, module: nn.Module, start: dict[str, LowRank] | None = None) -> AdapterState:
    """The LoRA that changes the part as its adapter of another kind does.

    All layers have the rank of the one that needs most: readers of the kohya format mix up ranks that differ.
    """
    from peft import LoraConfig

    changes = compute_low_rank_updates(module, start)
    shapes = {layer: tuple(module.get_submodule(layer).weight.shape) for layer in changes}
    rank, tensors = max(len(down) for _, down in changes.values()), {}
    for layer, (up, down) in changes.items():
        spare, beyond = rank - len(down), shapes[layer][2:]  # the latter is a convolution's kernel
        down, up = F.pad(down, (0, 0, 0, spare)), F.pad(up, (0, spare))
        tensors[f"{layer}.lora_A.weight"] = down.reshape(rank, -1, *beyond)
        tensors[f"{layer}.lora_B.weight"] = up.reshape(-1, rank, *[1] * len(beyond))
    return normalize_adapter_state(
        part, tensors, LoraConfig(r=rank, lora_alpha=rank, target_modules=list(changes)).to_dict(), shapes
    )


def build_adapter_state(part: str, layers: dict[str, LowRankLayer]) -> AdapterState:
    """What was read from a file, or computed; ranks and alphas that differ from most are in peft's patterns."""
    from peft import LoraConfig

    tensors = {}
    for name, layer in layers.items():
        tensors |= {f"{name}.lora_A.weight": layer.down, f"{name}.lora_B.weight": layer.up}
        if layer.magnitude is not None:
            size = [-1] if layer.down.ndim == 2 else [1, -1, 1, 1]
            tensors[f"{name}.lora_magnitude_vector" + ".weight" * (part == "text_encoder")] = layer.magnitude.reshape(
                size
            )
    with_magnitude = [name for name, layer in layers.items() if layer.magnitude is not None]
    if with_magnitude and len(with_magnitude) < len(layers):
        plain = min(set(layers) - set(with_magnitude))
        raise ValueError(f"{with_magnitude[0]} is a DoRA's, {plain} a LoRA's: no file holds both in one part")
    most = {
        key: Counter(getattr(layer, key) for layer in layers.values()).most_common(1)[0][0] for key in ("rank", "alpha")
    }
    other = {
        k: {to_peft_pattern(n): getattr(la, k) for n, la in layers.items() if getattr(la, k) != v}
        for k, v in most.items()
    }
    settings = LoraConfig(
        r=most["rank"],
        lora_alpha=most["alpha"],
        rank_pattern=other["rank"],
        alpha_pattern=other["alpha"],
        target_modules=[name.removeprefix(TEXT_MODEL_PREFIX) for name in layers],
        use_dora=bool(with_magnitude),
    )
    return AdapterState(tensors, settings.to_dict(), {name: layer.shape for name, layer in layers.items()})


def to_peft_pattern(layer: str) -> str:
    """The layer alone, in peft's patterns; the text encoder's root is there in some versions of transformers only."""
    return layer.removeprefix(TEXT_MODEL_PREFIX) if layer.startswith(TEXT_MODEL_PREFIX) else f"^{layer}"


def normalize_adapter_state(
    part: str, tensors: dict[str, Tensor], settings: dict, shapes: dict[str, tuple]
) -> AdapterState:
    """The names that files use, which for the text encoder are not its own."""
    if part == "text_encoder":  # whose loader in transformers wants each tensor to be called a weight
        tensors = {
            normalize_layer_name(part, key) + ".weight" * key.endswith("vector"): weight
            for key, weight in tensors.items()
        }
        shapes = {normalize_layer_name(part, layer): shape for layer, shape in shapes.items()}
    return AdapterState(tensors, settings, shapes)


def split_tensor_name(key: str) -> tuple[str, str]:
    """`LAYER.lora_A.weight` to (`LAYER`, `lora_A.weight`)."""
    for kind in KOHYA_SUFFIXES:
        for ending in (f".{kind}", f".{kind}.weight"):
            if key.endswith(ending):
                return key.removesuffix(ending), kind
    raise AssertionError(f"unknown adapter tensor {key}")
