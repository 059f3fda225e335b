"""LoRA files of every format in one representation: two factors and an alpha for each layer."""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sdft.lora.architecture import Architecture, list_architectures
from sdft.lora.dora import detect_input_norms
from sdft.lora.foreign_files import describe_foreign_file
from sdft.lora.key_names import (
    BUNDLED_PREFIX,
    OFFSET_ROLES,
    SCALAR_ROLES,
    Groups,
    group_tensors,
    parse_tensor_name,
)
from sdft.lora.layer_matching import ArchitectureMismatchError, match_architecture
from sdft.lora.layer_parsing import FILE_ADAPTER_TYPES, detect_adapter_type, parse_layer
from sdft.lora.low_rank import LowRankLayer
from sdft.lora.peft_config import PEFT_FILE, read_peft_alphas
from sdft.models.safetensors_check import check_safetensors
from sdft.runs.hashing import hash_file
from sdft.runs.terminal import print_text

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"


@dataclass
class LoraFile:
    """`parts`: layers by part (diffusers' names) and name; `adapter_types`: the types stored in the file.

    `offsets`: changes of biases and norms by part and parameter. `notes`: what is not loaded or was assumed.
    """

    path: Path
    file_format: str  # diffusers | kohya | peft
    adapter_types: list[str]
    parts: dict[str, dict[str, LowRankLayer]]
    metadata: dict[str, str] = field(default_factory=dict)
    architecture: Architecture | None = None  # the one that has its layers
    dtype: torch.dtype = torch.float32
    tensor_count: int = 0
    offsets: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

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
    """Resolve a path: a file, or the diffusers or peft file in a folder or in its `adapter/`."""
    for candidate in (path, path / DIFFUSERS_FILE, path / "adapter" / DIFFUSERS_FILE, path / PEFT_FILE):
        if candidate.is_file():
            return candidate
    if adapters := sorted(str(file.parent) for file in path.glob(f"*/{PEFT_FILE}")):
        raise ValueError(f"adapter={path}: holds {len(adapters)} peft adapters; give adapters=[{','.join(adapters)}]")
    if pickles := sorted(file.name for kind in ("bin", "pt", "ckpt") for file in path.glob(f"*.{kind}")):
        raise ValueError(f"adapter={path}: holds only {pickles[0]}; pickles can hold code; save it as .safetensors")
    raise ValueError(f"adapter={path}: not a LoRA file or a folder with {DIFFUSERS_FILE} or {PEFT_FILE}")


def contains_dora(path: Path) -> bool:
    """Whether a LoRA file has magnitudes, to be loaded with the weights of the base; reads no tensor."""
    from safetensors import safe_open

    check_safetensors(path, "adapter")
    with safe_open(path, "pt") as reader:
        return any("dora_scale" in key or "magnitude" in key for key in reader.keys())  # noqa: SIM118  not a dict


def check_weight_count(weights: list[float], count: int) -> list[float]:
    """Return the weights; `ValueError` unless there is one per adapter."""
    if len(weights) != count:
        raise ValueError(f"weights={weights}: {len(weights)} for {count} adapters; give one weight per adapter")
    return weights


def read_lora_file(path: Path, architectures: list[Architecture] | None = None, offsets: bool = False) -> LoraFile:
    """Read a LoRA file, or the one in a run or adapter folder.

    One of `architectures` (default: the bundled ones) must have its layers. `ValueError` names the file and the defect, such as
    changes of biases and norms, unless `offsets` accepts them.
    """
    from safetensors import safe_open

    path = find_lora_file(Path(path).expanduser())
    check_safetensors(path, "adapter")
    with safe_open(path, "pt") as reader:
        metadata = dict(reader.metadata() or {})
        tensors = {key: reader.get_tensor(key) for key in reader.keys()}  # noqa: SIM118  not a dict
    try:
        file = parse_lora_file(path, tensors, metadata, architectures or list_architectures())
        if file.offsets and not offsets:
            raise ValueError(
                f"changes {len(file.offsets)} biases or norms, such as {min(file.offsets)[1]}, which no adapter holds; merge it "
                "into its base (sdft merge) and use the result"
            )
    except ArchitectureMismatchError as error:
        raise ArchitectureMismatchError(f"adapter={path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"adapter={path}: {error}") from None
    for note in file.notes:
        print_text(f"warning    adapter={path}: {note}", file=sys.stderr)
    return file


def parse_lora_file(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], architectures: list[Architecture]
) -> LoraFile:
    bundled = [key for key in tensors if key.startswith(BUNDLED_PREFIX)]
    weights = {key: tensor for key, tensor in tensors.items() if not key.startswith(BUNDLED_PREFIX)}
    is_lora = any(parse_tensor_name(key) for key in weights)
    try:
        groups, file_format = group_tensors(weights)
        match = match_architecture(groups, sort_architectures(architectures, metadata))
    except ValueError as error:
        if description := describe_foreign_file(weights, is_lora):
            raise ValueError(description) from None
        raise error from None
    architecture, found = match.architecture, match.found
    check_unique_layers(found)
    offsets = pop_offsets(groups, found)
    shapes = {name: architecture.get_shape(*found[name]) for name in groups}
    input_norms = detect_input_norms(groups, shapes)
    if input_norms is None and "lycoris" in metadata.get("ss_network_module", ""):
        input_norms = True  # LyCORIS writes norms of outputs as columns only
    alphas = read_peft_alphas(path, metadata, file_format) if file_format != "kohya" else {}
    parts: dict[str, dict[str, LowRankLayer]] = {}
    for name, group in groups.items():
        part, layer = found[name]
        alpha = partial(alphas.get(part, lambda _, rank: (None, rank)), layer)
        parts.setdefault(part, {})[layer] = parse_layer(name, group, shapes[name], alpha, input_norms)
    if not parts and not offsets:
        raise ValueError("changes nothing")
    return LoraFile(
        path,
        file_format,
        list_adapter_types(groups),
        {part: parts[part] for part in architecture.shapes if part in parts},
        metadata,
        architecture,
        find_common_dtype(groups),
        len(tensors),
        offsets,
        list_notes(groups, bundled, file_format, alphas),
    )


def sort_architectures(architectures: list[Architecture], metadata: dict[str, str]) -> list[Architecture]:
    """Those of the family that the header names first: a file of a few layers may fit several."""
    version = metadata.get("ss_base_model_version", "")
    return sorted(architectures, key=lambda each: each.family.kohya_version != version)


def check_unique_layers(found: dict[str, tuple[str, str]]) -> None:
    """`ValueError` if two names in a file are of one layer."""
    names: dict[tuple[str, str], str] = {}
    for name, layer in found.items():
        if names.setdefault(layer, name) != name:
            raise ValueError(f"{name}: duplicate layer, as {names[layer]}")


def pop_offsets(groups: Groups, found: dict[str, tuple[str, str]]) -> dict[tuple[str, str], Tensor]:
    """Remove changes of biases and norms from the groups; return those that are not 0 by part and parameter."""
    offsets = {}
    for name, group in list(groups.items()):
        part, layer = found[name]
        for role in set(OFFSET_ROLES) & set(group):
            offset = group.pop(role).float().flatten()
            if not torch.isfinite(offset).all():
                raise ValueError(f"{name}: {role} contains NaN/Inf")
            if torch.count_nonzero(offset):
                offsets[part, f"{layer}.{'weight' if role == 'w_norm' else 'bias'}"] = offset
        if not group:
            del groups[name]
    return offsets


def list_adapter_types(groups: Groups) -> list[str]:
    types = sorted({detect_adapter_type(group) for group in groups.values()}, key=FILE_ADAPTER_TYPES.index)
    return types + ["dora"] * any({"magnitude", "dora_scale"} & set(group) for group in groups.values())


def find_common_dtype(groups: Groups) -> torch.dtype:
    """The dtype of all weights, fp32 if they differ."""
    dtypes = {tensor.dtype for group in groups.values() for role, tensor in group.items() if role not in SCALAR_ROLES}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def list_notes(groups: Groups, bundled: list[str], file_format: str, alphas: dict) -> list[str]:
    """What the user should know of a file that could be read."""
    notes = []
    if bundled:
        names = sorted({key.split(".")[1] for key in bundled})
        notes.append(f"its embeddings of {', '.join(names)[:200]!r} are not loaded; the prompt tokens have no effect")
    if file_format == "peft" and not alphas and not all("alpha" in group for group in groups.values()):
        notes.append("no adapter_config.json beside it, so that alpha is taken to be the rank")
    return notes
