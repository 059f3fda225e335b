"""Any LoRA file as one thing: parts, layers, two factors and an alpha each, whatever the format that it was written in."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sdft.lora.architecture import TEXT_MODEL_PREFIX, Architecture, list_architectures
from sdft.lora.key_names import FILE_ADAPTER_TYPES, detect_adapter_type, group_tensors, match_architecture
from sdft.lora.layer_parsing import parse_layer
from sdft.lora.low_rank import LowRankLayer
from sdft.runs.hashing import hash_file

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_CONFIG_KEY = "lora_adapter_metadata"  # the key of the header that holds peft's configuration


@dataclass
class LoraFile:
    """`parts`: layers by part (unet, text_encoder) and name; `kinds`: what they were before they became factors."""

    path: Path
    file_format: str  # diffusers | kohya
    adapter_types: list[str]
    parts: dict[str, dict[str, LowRankLayer]]
    metadata: dict[str, str] = field(default_factory=dict)
    architecture: str | None = None  # the one that it fits
    dtype: torch.dtype = torch.float32
    tensors: int = 0

    @property
    def digest(self) -> str:
        return hash_file(self.path)

    @property
    def layers(self) -> dict[tuple[str, str], LowRankLayer]:
        return {(part, name): layer for part, layers in self.parts.items() for name, layer in layers.items()}

    @property
    def has_dora(self) -> bool:
        return any(layer.magnitude is not None for layer in self.layers.values())


def find_lora_file(path: Path) -> Path:
    """The file meant by a path: itself, or the diffusers file of a folder or of its `adapter/`."""
    for candidate in (path, path / DIFFUSERS_FILE, path / "adapter" / DIFFUSERS_FILE):
        if candidate.is_file():
            return candidate
    raise ValueError(f"adapter={path}: no such LoRA file, and no folder with {DIFFUSERS_FILE} in it")


def check_weight_count(weights: list[float], count: int) -> list[float]:
    """The weights; `ValueError` when they are not as many as adapters."""
    if len(weights) != count:
        raise ValueError(f"weights={weights}: {len(weights)} for {count} adapters; give one for each")
    return weights


def read_lora_file(path: Path, architectures: list[Architecture] | None = None) -> LoraFile:
    """A file, or the one of a run's or an adapter's folder; one of `architectures`, by default of those that this package
    carries, must have its layers. `ValueError` names the file and what is wrong with it.
    """
    from safetensors import safe_open

    from sdft.models.safetensors_check import check_safetensors

    file = find_lora_file(Path(path).expanduser())
    check_safetensors(file, "adapter")
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata() or {})
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  it is no dict
    try:
        return parse_lora_file(
            file, tensors, metadata, list_architectures() if architectures is None else architectures
        )
    except ValueError as error:
        raise ValueError(f"adapter={file}: {error}") from None


def parse_lora_file(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], among: list[Architecture]
) -> LoraFile:
    groups, form = group_tensors(tensors)
    architecture, places = match_architecture(groups, form, among)
    alphas = read_peft_alphas(metadata) if form == "diffusers" else {}
    parts: dict[str, dict[str, LowRankLayer]] = {}
    for name, group in groups.items():
        part, layer = places[name]
        shape = architecture.shapes[part][layer]
        alpha = alphas.get(part, lambda _layer, _rank: None)
        found = parse_layer(name, group, shape, lambda rank, layer=layer, alpha=alpha: alpha(layer, rank))
        if layer in parts.setdefault(part, {}):
            raise ValueError(f"{name}: this layer is there twice")
        parts[part][layer] = found
    kinds = sorted({detect_adapter_type(group) for group in groups.values()}, key=FILE_ADAPTER_TYPES.index)
    kinds += ["dora"] * any("magnitude" in group for group in groups.values())
    dtypes = {tensor.dtype for group in groups.values() for role, tensor in group.items() if role != "alpha"}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    parts = {part: parts[part] for part in ("unet", "text_encoder") if part in parts}
    return LoraFile(path, form, kinds, parts, metadata, architecture.name, dtype, len(tensors))


def read_peft_alphas(metadata: dict[str, str]) -> dict:
    """By part, a function of layer and rank to the alpha that peft's configuration in the header gives it."""
    if PEFT_CONFIG_KEY not in metadata:
        return {}
    try:
        told = json.loads(metadata[PEFT_CONFIG_KEY])
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise ValueError(f"its {PEFT_CONFIG_KEY} is not an object of JSON")
    configs: dict[str, dict] = {key.split(".")[0]: {} for key in told}
    for key, value in told.items():
        part, _, name = key.partition(".")
        configs[part][name] = value
    return {part: build_alpha_lookup(config) for part, config in configs.items()}


def build_alpha_lookup(config: dict):
    """peft's rule: `alpha_pattern` by the end of a layer's name, else `lora_alpha`; times sqrt(rank) where rank-stabilised."""
    patterns, default = config.get("alpha_pattern") or {}, config.get("lora_alpha")
    values = [*(patterns.values() if isinstance(patterns, dict) else [None]), *([] if default is None else [default])]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        raise ValueError(f"its {PEFT_CONFIG_KEY} has an alpha that is no number")
    if odd := [key for key in patterns if not key.removeprefix("^").replace(".", "").replace("_", "").isalnum()]:
        raise ValueError(f"its {PEFT_CONFIG_KEY} has an alpha_pattern that is no layer's name ({odd[0][:80]!r})")

    def alpha(layer: str, rank: int) -> float | None:
        bare = layer.removeprefix(TEXT_MODEL_PREFIX)
        found = [key for key in patterns if key in (layer, f"^{layer}", f"^{bare}") or layer.endswith(f".{key}")]
        value = patterns[found[0]] if found else default
        if value is None:
            return None
        return float(value) * (math.sqrt(rank) if config.get("use_rslora") else 1)

    return alpha
