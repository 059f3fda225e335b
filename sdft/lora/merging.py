"""LoRA files taken into the weights of a model, and out of them again."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sdft.lora.architecture import get_layer, get_model_architecture, normalize_layer_name
from sdft.lora.file import LoraFile, check_weight_count
from sdft.lora.low_rank import approximate_low_rank
from sdft.lora.mixing import MixResult
from sdft.models.loading import load_stable_diffusion
from sdft.models.stable_diffusion import StableDiffusion
from sdft.runs.hashing import hash_weights


@torch.no_grad()
def merge_lora_files(model: StableDiffusion, files: list[LoraFile], weights: list[float]) -> None:
    """W + sum of weight * dW in the model itself; a DoRA's dW is what it makes of the base's weight, as in diffusers."""
    check_weight_count(weights, len(files))
    changes: dict[tuple[str, str], Tensor] = {}
    for file, strength in zip(files, weights, strict=True):
        for (part, name), layer in file.layers.items():
            weight = get_layer(part, model.parts[part], name).weight
            change = layer.apply_to(weight, strength) - weight.double()
            changes[part, name] = changes.get((part, name), 0) + change
    for (part, name), change in changes.items():
        weight = get_layer(part, model.parts[part], name).weight
        weight.copy_(weight.double() + change)


@torch.no_grad()
def extract_lora(
    base: StableDiffusion,
    tuned: StableDiffusion,
    rank: int | None,
    energy: float | None = None,
    targets: dict[str, list[str] | None] | None = None,
    told: Callable[[list], list] = list,
) -> tuple[MixResult, float]:
    """The LoRA that is nearest to what was learned between two models, and the share of all that changed in their networks
    (norms, biases and layers that are not asked for, too) which lies in its layers.

    `targets` by part: the endings of layers' names; None for every linear layer and convolution. What did not change has none.
    """
    shapes, others = get_model_architecture(base).shapes, get_model_architecture(tuned).shapes
    if shapes != others:
        part = next(part for part in shapes if shapes[part] != others[part])
        name = next(n for n in shapes[part] | others[part] if shapes[part].get(n) != others[part].get(n))
        raise ValueError(f"tuned={tuned.name}: not of the architecture of base={base.name} ({part}.{name} is another)")
    if rank is None and energy is None:
        raise ValueError("rank=null energy=null: give one of them, such as rank=16 or energy=0.95")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy={energy}: choose more than 0 up to 1, such as 0.95")
    most = max(min(shape[0], torch.Size(shape[1:]).numel()) for layers in shapes.values() for shape in layers.values())
    if rank is not None and not 1 <= rank <= most:
        raise ValueError(f"rank={rank}: choose 1 to {most}; no layer of {base.name} has more")
    made, differing = MixResult(), sum(compute_squared_differences(base, tuned))
    wanted = [(p, n) for p, layers in shapes.items() for n in layers if matches_targets(p, n, (targets or {}).get(p))]
    for part, name in told(wanted):
        before, after = (get_layer(part, m.parts[part], name).weight.double() for m in (base, tuned))
        change = (after - before).cpu()
        if torch.count_nonzero(change):
            product = approximate_low_rank(change.flatten(1), rank or most, energy)
            made.total_energy += (whole := float(change.square().sum()))
            held = float(product[0].T.matmul(change.flatten(1)).mul(product[1]).sum())
            made.lost_energy += max(whole - held, 0.0)
            made.set_layer(part, name, tuple(change.shape), product)
    if not made.parts:
        raise ValueError(f"tuned={tuned.name}: no layer that is asked for differs from base={base.name}")
    return made, made.total_energy / differing


def matches_targets(part: str, name: str, endings: list[str] | None) -> bool:
    return endings is None or any(
        name == normalize_layer_name(part, ending) or name.endswith(f".{ending}") for ending in endings
    )


def compute_squared_differences(base: StableDiffusion, tuned: StableDiffusion):
    """The squared norm of what changed in each parameter of the networks that learn."""
    for part, module in base.parts.items():
        others = dict(tuned.parts[part].named_parameters())
        for name, before in module.named_parameters():
            if name in others and others[name].shape == before.shape:  # a vocabulary may have grown
                yield float((others[name] - before).double().square().sum())


def load_model_or_run(name: str, word: str) -> StableDiffusion:
    """A model by what `model.name` takes, or the one that a run made of all weights; the error names the word."""
    run = Path(name).expanduser() / "pipeline"
    try:
        return load_stable_diffusion(str(run) if run.is_dir() else name)
    except ValueError as error:
        raise ValueError(str(error).replace("model.name=", f"{word}=", 1)) from None


def build_extract_metadata(
    base: StableDiffusion, tuned: StableDiffusion, rank: int | None, energy: float | None, energy_fraction: float
) -> dict:
    """For the header of what was extracted: from which weights."""
    of = [{"file": "/".join(Path(model.name).parts[-2:]), "sha256": hash_weights(model)} for model in (base, tuned)]
    words = {"rank": rank} if energy is None else {"energy": energy}
    return {
        "sdft": json.dumps(
            {"created_by": "extract", **words, "energy_fraction": round(energy_fraction, 6), "of": of},
            ensure_ascii=False,
        )
    }
