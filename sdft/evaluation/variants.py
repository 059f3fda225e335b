"""What can be judged: the base, a result at any strength, a checkpoint, or a file from elsewhere."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sdft.evaluation.statistics import FINE_TUNED_LABEL
from sdft.lora.formats import load_lora
from sdft.methods.base import Method
from sdft.methods.full import FullFineTuning
from sdft.models.stable_diffusion import StableDiffusion

BASE = "base"
BEST = "best"  # the run's folder of the result that its checkpoint_metric chose


@dataclass
class ModelVariant:
    """`source` names what `load` puts into a model as the base has it; `scale` is the strength of its adapter."""

    label: str
    source: str = BASE
    load: Callable[[StableDiffusion], None] = lambda model: None
    scale: float = 1.0
    step: int | None = None


def build_run_variants(
    run: Path, method: Method, scales: list[float], checkpoints: str | list[int] | None, seed: int
) -> list[ModelVariant]:
    """The run's result at each of `scales`, and its checkpoints: `all`, `best` or steps."""
    if checkpoints == BEST and not (run / BEST).is_dir():
        raise ValueError(f"checkpoints=best: {run} has none; train with evaluate_every=N checkpoint_metric=SCORE")
    if scales != [1.0] and method.output_kind != "adapter":
        raise ValueError(
            f"adapter_scales={scales}: only an adapter has a strength, and this run's result is its {method.output_kind}/"
        )
    found = [ModelVariant(BASE)]
    for step, file in select_checkpoints(run, checkpoints):
        found.append(
            ModelVariant(
                f"step {step}",
                str(file),
                lambda model, f=file: load_checkpoint_weights(model, method, f, seed),
                step=step,
            )
        )
    if (run / BEST).is_dir() and checkpoints in (None, BEST, "all"):
        found.append(ModelVariant(BEST, str(run / BEST), lambda model: method.load(model, run / BEST)))
    result = find_result_folder(run, method)
    return found + build_scaled_variants(
        FINE_TUNED_LABEL, str(result), lambda model: method.load(model, result), scales
    )


def find_result_folder(run: Path, method: Method) -> Path:
    """The folder that a finished run's method has filled."""
    if not (run / method.output_kind).is_dir():
        raise ValueError(f"run={run}: it has no {method.output_kind}/ yet; it did not finish")
    return run / method.output_kind


def build_file_variants(path: Path, scales: list[float]) -> list[ModelVariant]:
    """A LoRA file, or a pipeline folder in the diffusers layout."""
    if not (path / "model_index.json").is_file():
        return [
            ModelVariant(BASE),
            *build_scaled_variants(format_file_label(path), str(path), lambda model: load_lora(model, path), scales),
        ]
    if scales != [1.0]:
        raise ValueError(f"adapter_scales={scales}: only an adapter has a strength, and adapter={path} is a pipeline")

    def load(model: StableDiffusion) -> None:
        try:
            FullFineTuning(text_encoder=True).load(model, path)
        except RuntimeError as error:
            part = "text_encoder" if "CLIPText" in str(error) else "unet"
            raise ValueError(f"adapter={path}: its {part} is not shaped like that of {model.name}") from None

    return [ModelVariant(BASE), ModelVariant(format_file_label(path), str(path), load)]


def format_file_label(path: Path) -> str:
    """What a column is called, which is not the base's name."""
    return f"{path.stem} (adapter)" if path.stem == BASE else path.stem


def build_scaled_variants(label: str, source: str, load: Callable, scales: list[float]) -> list[ModelVariant]:
    if not scales:
        raise ValueError("adapter_scales=[]: give at least one, such as [0.5,1]")
    names = {scale: label if scale == 1 else f"{label} × {scale:g}" for scale in scales}
    return [ModelVariant(name, source, load, scale) for scale, name in names.items()]


def select_checkpoints(run: Path, checkpoints: str | list[int] | None) -> list[tuple[int, Path]]:
    """Steps and files of the checkpoints that are asked for."""
    if checkpoints in (None, BEST):
        return []
    files = {int(file.stem.removeprefix("step-")): file for file in sorted((run / "checkpoints").glob("step-*.ckpt"))}
    if checkpoints == "all":
        return sorted(files.items())
    if isinstance(checkpoints, str) or (missing := [step for step in checkpoints if step not in files]):
        wrong = checkpoints if isinstance(checkpoints, str) else missing[0]
        there = ", ".join(map(str, files)) or "none; save_every=N makes them"
        raise ValueError(f"checkpoints={wrong}: choose all, best, or a list of steps; {run} has {there}")
    return [(step, files[step]) for step in checkpoints]


def load_checkpoint_weights(model: StableDiffusion, method: Method, file: Path, seed: int) -> None:
    """What learned as it was at that step, averaged where the run averaged its weights."""
    from sdft.runs.checkpoint_file import read_checkpoint

    told = read_checkpoint(file)
    if any("train_mode" in group for state in told["optimizer_states"] for group in state["param_groups"]):
        raise ValueError(
            f"checkpoints: {file} holds no averaged weights, which a schedule-free optimizer makes at the end"
        )
    average = next((state["average"] for key, state in told["callbacks"].items() if key.startswith("EMA")), {})
    saved = {name.removeprefix("model."): weight for name, weight in told["state_dict"].items()} | average
    torch.manual_seed(seed)
    method.prepare(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = saved[name].to(parameter.device)
    model.requires_grad_(False).eval()


@contextmanager
def scale_adapters(model: StableDiffusion, scale: float):
    """Adapters at `scale` times their own strength, and afterwards as they were."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    own = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        layer.scaling.update({name: value * scale for name, value in layer.scaling.items()})
    try:
        yield
    finally:
        for layer, scaling in zip(layers, own, strict=True):
            layer.scaling.update(scaling)
