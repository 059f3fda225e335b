"""Model variants to evaluate: the base, a run's result at any adapter scale, a checkpoint, or an external file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sdft.evaluation.statistics import FINE_TUNED_LABEL
from sdft.evaluation.whole_models import check_whole_model, is_whole_model, load_whole_model
from sdft.lora.architecture import get_model_architecture
from sdft.lora.file import contains_dora, find_lora_file, read_lora_file
from sdft.lora.formats import load_lora
from sdft.methods.base import Method
from sdft.models.diffusion_model import DiffusionModel
from sdft.runs.checkpoint_file import read_checkpoint

BASE = "base"
BEST = "best"  # run subfolder with the result chosen by checkpoint_metric


@dataclass
class ModelVariant:
    """`load` puts the weights identified by `source` into a base model; `scale` multiplies its adapters.

    `check` raises `ValueError` for weights that do not fit the base, before any image is generated. `needs_fp32`: whether `load`
    takes a part's fp32 weights.
    """

    label: str
    source: str = BASE
    load: Callable[[DiffusionModel], None] = lambda model: None
    scale: float = 1.0
    step: int | None = None
    check: Callable[[DiffusionModel], None] = lambda model: None
    needs_fp32: Callable[[str], bool] = lambda part: False


def build_run_variants(
    run: Path, method: Method, scales: list[float], checkpoints: str | list[int] | None, seed: int
) -> list[ModelVariant]:
    """The base, the requested checkpoints (`all`, `best` or steps), and the run's result at each of `scales`."""
    if checkpoints == BEST and not (run / BEST).is_dir():
        raise ValueError(f"checkpoints=best: {run} has none; train with evaluate_every=N checkpoint_metric=SCORE")
    if scales != [1.0] and method.output_kind != "adapter":
        raise ValueError(f"adapter_scales={scales}: only adapters can be scaled; this run wrote {method.output_kind}/")
    replaces_networks = method.output_kind == "pipeline"

    def needs_fp32(part: str) -> bool:
        return not replaces_networks and method.needs_fp32(part)

    variants = [ModelVariant(BASE)]
    selected = select_checkpoints(run, checkpoints)
    if checkpoints == "all" and not selected and not (run / BEST).is_dir():
        raise ValueError(f"checkpoints=all: {run} has none; train with save_every=N checkpoints_total_limit=9")
    for step, file in selected:
        variants.append(
            ModelVariant(
                f"step {step}",
                str(file),
                lambda model, f=file: load_checkpoint_weights(model, method, f, seed),
                step=step,
                needs_fp32=needs_fp32,
            )
        )
    if (run / BEST).is_dir() and checkpoints in (None, BEST, "all"):
        best = ModelVariant(BEST, str(run / BEST), lambda model: method.load(model, run / BEST), needs_fp32=needs_fp32)
        variants.append(best)
    result = find_result_folder(run, method)
    return variants + build_scaled_variants(
        FINE_TUNED_LABEL, str(result), lambda model: method.load(model, result), scales, needs_fp32
    )


def find_result_folder(run: Path, method: Method) -> Path:
    """The folder with the result of a finished run; `ValueError` if it does not exist."""
    if not (run / method.output_kind).is_dir():
        raise ValueError(f"run={run}: no {method.output_kind}/ in it; the run did not finish")
    return run / method.output_kind


def build_file_variants(path: Path, scales: list[float]) -> list[ModelVariant]:
    """The base, and a LoRA file at each of `scales`, or a whole model: a pipeline folder or a checkpoint in one file."""
    label = format_file_label(path)
    if not is_whole_model(path):
        variants = build_scaled_variants(
            label,
            str(path),
            lambda model: load_lora(model, path),
            scales,
            needs_fp32=lambda part: contains_dora(find_lora_file(path)),
        )
        variants[0].check = lambda model: read_lora_file(path, [get_model_architecture(model)])
        return [ModelVariant(BASE), *variants]
    if scales != [1.0]:
        raise ValueError(f"adapter_scales={scales}: only adapters can be scaled; adapter={path} is a whole model")
    variant = ModelVariant(label, str(path), lambda model: load_whole_model(model, path))
    variant.check = lambda model: check_whole_model(model, path)
    return [ModelVariant(BASE), variant]


def format_file_label(path: Path) -> str:
    """The file's stem, made distinct from the label of the base."""
    return f"{path.stem} (adapter)" if path.stem == BASE else path.stem


def build_scaled_variants(
    label: str,
    source: str,
    load: Callable,
    scales: list[float],
    needs_fp32: Callable[[str], bool] = lambda part: False,
) -> list[ModelVariant]:
    if not scales:
        raise ValueError("adapter_scales=[]: give at least one, such as [0.5,1]")
    names = {scale: label if scale == 1 else f"{label} × {scale:g}" for scale in scales}
    return [ModelVariant(name, source, load, scale, needs_fp32=needs_fp32) for scale, name in names.items()]


def select_checkpoints(run: Path, checkpoints: str | list[int] | None) -> list[tuple[int, Path]]:
    """Steps and files of the requested checkpoints."""
    if checkpoints in (None, BEST):
        return []
    files = {int(file.stem.removeprefix("step-")): file for file in sorted((run / "checkpoints").glob("step-*.ckpt"))}
    if checkpoints == "all":
        return sorted(files.items())
    if isinstance(checkpoints, str) or (missing := [step for step in checkpoints if step not in files]):
        wrong = checkpoints if isinstance(checkpoints, str) else missing[0]
        available = ", ".join(map(str, files)) or "none; set save_every=N to save some"
        raise ValueError(f"checkpoints={wrong}: choose all, best, or a list of steps; {run} has {available}")
    return [(step, files[step]) for step in checkpoints]


def load_checkpoint_weights(model: DiffusionModel, method: Method, file: Path, seed: int) -> None:
    """Load the trainable weights of a checkpoint; the EMA average if the run kept one."""
    checkpoint = read_checkpoint(file)
    if any("train_mode" in group for state in checkpoint["optimizer_states"] for group in state["param_groups"]):
        raise ValueError(
            f"checkpoints: {file} has no averaged weights; schedule-free optimizers compute them after training"
        )
    average = checkpoint["callbacks"].get("ema", {"average": {}})["average"]
    saved = {name.removeprefix("model."): weight for name, weight in checkpoint["state_dict"].items()} | average
    torch.manual_seed(seed)
    method.prepare(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = saved[name].to(parameter.device)
    model.requires_grad_(False).eval()
