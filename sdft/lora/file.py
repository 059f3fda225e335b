"""LoRA files of every format in one representation: two factors and an alpha for each layer."""

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
from sdft.models.safetensors_check import check_safetensors
from sdft.runs.hashing import hash_file

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_CONFIG_KEY = "lora_adapter_metadata"  # header key of the peft config


@dataclass
class LoraFile:
    """`parts`: layers by part (unet, text_encoder) and name; `adapter_types`: the types stored in the file."""

    path: Path
    file_format: str  # diffusers | kohya
    adapter_types: list[str]
    parts: dict[str, dict[str, LowRankLayer]]
    metadata: dict[str, str] = field(default_factory=dict)
    architecture: str | None = None  # name of the matching architecture
    dtype: torch.dtype = torch.float32
    tensor_count: int = 0

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
    """Resolve a path: a file, or the diffusers file in a folder or in its `adapter/`."""
    for candidate in (path, path / DIFFUSERS_FILE, path / "adapter" / DIFFUSERS_FILE):
        if candidate.is_file():
            return candidate
    raise ValueError(f"adapter={path}: not a LoRA file or a folder with {DIFFUSERS_FILE}")


def check_weight_count(weights: list[float], count: int) -> list[float]:
    """Return the weights; `ValueError` unless there is one per adapter."""
    if len(weights) != count:
        raise ValueError(f"weights={weights}: {len(weights)} for {count} adapters; give one weight per adapter")
    return weights


def read_lora_file(path: Path, architectures: list[Architecture] | None = None) -> LoraFile:
    """Read a LoRA file, or the one in a run or adapter folder.

    One of `architectures` (default: the bundled ones) must have its layers. `ValueError` names the file and the defect.
    """
    from safetensors import safe_open

    path = find_lora_file(Path(path).expanduser())
    check_safetensors(path, "adapter")
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
    try:
        return parse_lora_file(
            path, tensors, metadata, list_architectures() if architectures is None else architectures
        )
    except ValueError as error:
        raise ValueError(f"adapter={path}: {error}") from None


def parse_lora_file(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], architectures: list[Architecture]
) -> LoraFile:
    groups, file_format = group_tensors(tensors)
    architecture, layer_index = match_architecture(groups, file_format, architectures)
    alphas = read_peft_alphas(metadata) if file_format == "diffusers" else {}
    parts: dict[str, dict[str, LowRankLayer]] = {}
    for name, group in groups.items():
        part, layer = layer_index[name]
        shape = architecture.shapes[part][layer]
        alpha = alphas.get(part, lambda _layer, _rank: None)
        parsed = parse_layer(name, group, shape, lambda rank, layer=layer, alpha=alpha: alpha(layer, rank))
        if layer in parts.setdefault(part, {}):
            raise ValueError(f"{name}: duplicate layer")
        parts[part][layer] = parsed
    types = sorted({detect_adapter_type(group) for group in groups.values()}, key=FILE_ADAPTER_TYPES.index)
    types += ["dora"] * any("magnitude" in group for group in groups.values())
    dtypes = {tensor.dtype for group in groups.values() for role, tensor in group.items() if role != "alpha"}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    parts = {part: parts[part] for part in ("unet", "text_encoder") if part in parts}
    return LoraFile(path, file_format, types, parts, metadata, architecture.name, dtype, len(tensors))


def read_peft_alphas(metadata: dict[str, str]) -> dict:
    """Map each part to a function of (layer, rank) that returns the alpha of the peft config in the header."""
    if PEFT_CONFIG_KEY not in metadata:
        return {}
    try:
        settings = json.loads(metadata[PEFT_CONFIG_KEY])
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"metadata key {PEFT_CONFIG_KEY} is not a JSON object")
    configs: dict[str, dict] = {key.split(".")[0]: {} for key in settings}
    for key, value in settings.items():
        part, _, name = key.partition(".")
        configs[part][name] = value
    return {part: build_alpha_lookup(config) for part, config in configs.items()}


def build_alpha_lookup(config: dict):
    """peft's rule: `alpha_pattern` by the layer name's suffix, else `lora_alpha`; times sqrt(rank) if rank-stabilized."""
    patterns, default = config.get("alpha_pattern") or {}, config.get("lora_alpha")
    values = [*(patterns.values() if isinstance(patterns, dict) else [None]), *([] if default is None else [default])]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        raise ValueError(f"metadata key {PEFT_CONFIG_KEY} has an alpha that is not a finite number")
    if invalid := [key for key in patterns if not key.removeprefix("^").replace(".", "").replace("_", "").isalnum()]:
        raise ValueError(f"metadata key {PEFT_CONFIG_KEY}: alpha_pattern {invalid[0][:80]!r} is not a layer name")

    def get_alpha(layer: str, rank: int) -> float | None:
        bare = layer.removeprefix(TEXT_MODEL_PREFIX)
        matches = [key for key in patterns if key in (layer, f"^{layer}", f"^{bare}") or layer.endswith(f".{key}")]
        value = patterns[matches[0]] if matches else default
        if value is None:
            return None
        return float(value) * (math.sqrt(rank) if config.get("use_rslora") else 1)

    return get_alpha
