"""Merge LoRA files into the weights of a model, and extract a LoRA from two models."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from sdft.lora.architecture import get_layer, get_model_architecture
from sdft.lora.dora import expand_dora
from sdft.lora.families import normalize_layer_name
from sdft.lora.file import LoraFile, check_weight_count
from sdft.lora.low_rank import LowRankLayer
from sdft.lora.low_rank_result import LowRankResult
from sdft.models.diffusion_model import DiffusionModel
from sdft.models.loading import load_stable_diffusion
from sdft.runs.files import is_local_path
from sdft.runs.hashing import hash_weights

Targets = dict[str, list[str] | None]  # by part: suffixes of layer names, or None for all layers


@torch.no_grad()
def merge_lora_files(model: DiffusionModel, files: list[LoraFile], weights: list[float]) -> None:
    """Add sum(weight * dW) to the weights in place; the dW of a DoRA is computed from the base, as in diffusers.

    It holds dW of one weight at a time, in fp64: those of all weights are twice the size of the model.
    """
    check_weight_count(weights, len(files))
    changes: dict[tuple[str, str], list[tuple[float, LowRankLayer | Tensor]]] = defaultdict(list)
    for file, strength in zip(files, weights, strict=True):
        for part, layers in file.parts.items():
            for name, layer in expand_dora(part, model.components[part], layers).items():
                changes[part, f"{name}.weight"].append((strength, layer))
        for (part, parameter), offset in file.offsets.items():
            if (tensor := get_parameter(model, part, parameter)) is None or tensor.shape != offset.shape:
                raise ValueError(f"adapter={file.path}: {part}.{parameter} does not fit {model.name}")
            changes[part, parameter].append((strength, offset))
    for (part, parameter), terms in changes.items():
        tensor = get_parameter(model, part, parameter)
        base = tensor.double()
        tensor.copy_(base + sum(compute_change(base, change, strength) for strength, change in terms))


def compute_change(base: Tensor, change: LowRankLayer | Tensor, strength: float) -> Tensor:
    """What a layer or an offset adds to a weight, in fp64."""
    if isinstance(change, Tensor):
        return strength * change.double().to(base.device)
    return change.apply_to(base, strength) - base


def get_parameter(model: DiffusionModel, part: str, parameter: str) -> Tensor | None:
    layer, _, kind = parameter.rpartition(".")
    return getattr(get_layer(part, model.components[part], layer), kind)


@torch.no_grad()
def extract_lora(
    base: DiffusionModel,
    tuned: DiffusionModel,
    rank: int | None,
    energy: float | None = None,
    targets: Targets | None = None,
    track: Callable[[list], list] = list,
) -> tuple[LowRankResult, float]:
    """The LoRA nearest to the difference of two models, and the fraction of their squared difference in its layers.

    That difference includes norms, biases and other layers. Unchanged layers are left out. `track` reports progress.
    """
    max_rank = check_extraction(base, tuned, rank, energy)
    shapes, targets = get_model_architecture(base).shapes, targets or {}
    result, total_difference = LowRankResult(), sum(compute_squared_differences(base, tuned))
    layers = [(p, n) for p, names in shapes.items() for n in names if matches_targets(p, n, targets.get(p))]
    for part, name in track(layers):
        before, after = (get_layer(part, m.components[part], name).weight.double() for m in (base, tuned))
        change = (after - before).cpu()
        if torch.count_nonzero(change):
            result.add_nearest(part, name, change, rank or max_rank, energy)
    if not result.parts:
        raise ValueError(f"tuned={tuned.name}: no selected layer differs from base={base.name}")
    return result, result.total_energy / total_difference


@torch.no_grad()
def find_nearest_lora(base: DiffusionModel, file: LoraFile, rank: int) -> LowRankResult:
    """The plain LoRA of `rank` nearest to the change that a file makes to the base weights, its DoRA magnitudes included."""
    if rank < 1:
        raise ValueError(f"rank={rank}: choose 1 or more; the error falls with the rank")
    result = LowRankResult()
    for (part, name), layer in file.layers.items():
        weight = get_layer(part, base.components[part], name).weight.double().cpu()
        if torch.count_nonzero(change := layer.apply_to(weight) - weight):
            result.add_nearest(part, name, change, rank)
    if not result.parts:
        raise ValueError(f"adapter={file.path}: changes no weight of base={base.name}")
    return result


def check_extraction(base: DiffusionModel, tuned: DiffusionModel, rank: int | None, energy: float | None) -> int:
    """Return the highest possible rank; `ValueError` for different architectures or an invalid rank or energy."""
    shapes, tuned_shapes = get_model_architecture(base).shapes, get_model_architecture(tuned).shapes
    if shapes != tuned_shapes:
        part = next(part for part in shapes if shapes[part] != tuned_shapes[part])
        name = next(n for n in shapes[part] | tuned_shapes[part] if shapes[part].get(n) != tuned_shapes[part].get(n))
        raise ValueError(f"tuned={tuned.name}: architecture differs from base={base.name} (at {part}.{name})")
    if rank is None and energy is None:
        raise ValueError("rank=null energy=null: give one of them, such as rank=16 or energy=0.95")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy={energy}: choose more than 0 and at most 1, such as 0.95")
    max_rank = max(min(shape[0], torch.Size(shape[1:]).numel()) for part in shapes.values() for shape in part.values())
    if rank is not None and not 1 <= rank <= max_rank:
        raise ValueError(f"rank={rank}: choose 1 to {max_rank}, the highest rank in {base.name}")
    return max_rank


def matches_targets(part: str, name: str, suffixes: list[str] | None) -> bool:
    return suffixes is None or any(
        name == normalize_layer_name(part, suffix) or name.endswith(f".{suffix}") for suffix in suffixes
    )


def compute_squared_differences(base: DiffusionModel, tuned: DiffusionModel) -> Iterator[float]:
    """Yield the squared norm of the change of each parameter of the UNet and the text encoder."""
    for part, module in base.components.items():
        tuned_parameters = dict(tuned.components[part].named_parameters())
        for name, before in module.named_parameters():
            after = tuned_parameters.get(name)
            if after is not None and after.shape == before.shape:  # a vocabulary may have grown
                yield float((after - before).double().square().sum())


def load_model_or_run(name: str, option: str) -> DiffusionModel:
    """Load a model for its weights by `model.name`, or the pipeline of a run; errors name the option."""
    run = Path(name).expanduser() / "pipeline"
    prediction_type = (
        "epsilon" if Path(name).expanduser().is_file() else None
    )  # files need not say it; nothing depends on it
    try:
        return load_stable_diffusion(str(run) if run.is_dir() else name, prediction_type=prediction_type)
    except ValueError as error:
        raise ValueError(str(error).replace("model.name=", f"{option}=", 1)) from None


def build_extract_metadata(
    base: DiffusionModel, tuned: DiffusionModel, rank: int | None, energy: float | None, energy_fraction: float
) -> dict[str, str]:
    """Header metadata that records the two models and the settings."""
    sources = [{"file": format_model_name(model.name), "sha256": hash_weights(model)} for model in (base, tuned)]
    settings = {"rank": rank} if energy is None else {"energy": energy}
    record = {"created_by": "extract", **settings, "energy_fraction": round(energy_fraction, 6), "sources": sources}
    return {"sdft": json.dumps(record, ensure_ascii=False)}


def format_model_name(name: str) -> str:
    """The name of a model without the folders of this machine: a hub id, a folder's name, or that of the run with `pipeline`."""
    path = Path(name)
    if not is_local_path(name):
        return name
    return f"{path.parent.name}/{path.name}" if path.name == "pipeline" else path.name
