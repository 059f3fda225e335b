"""Summary of a run before its first step, with warnings about settings that would silently ruin it."""

import platform
import sys
from collections import Counter
from pathlib import Path

import torch

from sdft.models.cpu_threads import choose_num_threads
from sdft.runs.terminal import print_text
from sdft.training.export.modelspec import get_modelspec_architecture
from sdft.training.memory_estimate import GB, estimate_memory, format_bytes, get_free_and_total_memory
from sdft.training.step_spec import StepSpec

MAX_WARMUP_FRACTION = 0.2  # a longer warm-up leaves little time at the full learning rate
RESOLUTION_RANGE = (0.75, 2)  # relative to that of the checkpoint: below, objects are cut off; above, they are repeated


def collect_run_summary(module, dataset, training, schedule, trainer, step: StepSpec) -> dict:
    """Facts about the run for `run.json`, with a list of `warnings`; `step` is the run's largest step."""
    model, steps, num_processes = module.model, trainer.max_steps, trainer.world_size
    trainable = {part: count_parameters(parameters) for part, parameters in module.get_trainable_parts().items()}
    memory, memory_warnings = check_memory(module, step) if trainer.is_global_zero else ({}, [])
    return {
        "trainable": trainable,
        "part_lr": {part: module.lr[part] for part in trainable},
        "parameters": module.num_base_parameters,
        "images": len(dataset),
        "num_class_images": sum(len(part) for part in dataset.datasets[1:]),
        "steps": steps,
        "epochs": round(dataset.plan.count_epochs(steps), 2),
        "buckets": {f"{w}x{h}": n for (w, h), n in sorted(Counter(dataset.datasets[0].sizes).items())},
        "batch": {
            "size": training.batch_size,
            "gradient_accumulation_steps": training.gradient_accumulation_steps,
            "processes": num_processes,
        },
        "resolution": dataset.settings.resolution,
        "prediction_type": model.prediction_type,
        "base": model.name,
        "pipeline": model.pipeline_names["text_to_image"],
        "empty_caption": model.empty_caption,
        **describe_clip_skip(model),
        "architecture": get_modelspec_architecture(model),
        "precision": str(model.compute_dtype).removeprefix("torch."),
        "device": format_device(trainer.strategy.root_device, choose_num_threads(model.unet, step.latent_shape)),
        "seed": training.seed,
        **memory,
        "warnings": [
            *list_checkpoint_warnings(model, dataset.settings.resolution),
            *list_schedule_warnings(schedule, steps),
            *module.objective.list_warnings(model),
            *memory_warnings,
        ],
    }


def describe_clip_skip(model) -> dict:
    """The chosen layer of the text encoders in WebUI's and in diffusers' counting; empty for the usual one."""
    skipped = model.diffusers_clip_skip
    return {"clip_skip": {"webui": model.clip_skip, "diffusers": skipped}} if skipped else {}


def list_checkpoint_warnings(model, resolution: int):
    """Warnings about options that contradict what the weights were trained for."""
    if (prediction_type := model.checkpoint_prediction_type) is None:
        return
    if prediction_type != model.prediction_type:
        yield (
            f"model.prediction_type={model.prediction_type}: the checkpoint was trained for {prediction_type} and must relearn "
            "what it predicts; remove the option unless you intend this"
        )
    lowest, highest = RESOLUTION_RANGE
    if (usual := model.checkpoint_resolution) and not lowest <= resolution / usual <= highest:
        yield (
            f"resolution={resolution}: the checkpoint was trained at {usual} px, and its images at {resolution} px are poor; "
            f"choose about {usual}"
        )


def list_schedule_warnings(schedule, steps: int):
    """Warnings about the learning-rate schedule."""
    if (warmup := schedule.count_warmup_steps(steps)) > MAX_WARMUP_FRACTION * steps:
        yield f"warm-up takes {warmup} of {steps} steps; more than a fifth leaves little time at the full learning rate"


def check_memory(module, step: StepSpec) -> tuple[dict, list[str]]:
    """Estimated and total device memory in GB, None where unknown, and a warning if the estimate exceeds the free memory."""
    try:
        estimate = estimate_memory(module, step)
    except Exception as error:  # any type: some operations do not run on fake tensors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return {"memory_gb_expected": None}, [f"memory not estimated: {reason}"]
    facts = {"memory_gb_expected": round(estimate.total / GB, 4), "memory_gb_device": None}
    if (available := get_free_and_total_memory(step.device, estimate.weights)) is None:
        return facts, []
    free, total = available
    facts["memory_gb_device"] = round(total / GB, 2)
    warning = (
        f"estimated memory {format_bytes(estimate.total)}, {format_bytes(free)} free: training may run out of memory"
    )
    return facts, [warning] if estimate.total > free else []


def count_parameters(parameters) -> int:
    return sum(p.numel() for p in parameters)


def format_device(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.machine()})"
    return f"cpu ({platform.machine()}, {threads} thread{'s' if threads > 1 else ''})"


def print_run_summary(summary: dict, headline: str, data_lines: list[str], folder: Path) -> None:
    num_trainable, num_parameters = sum(summary["trainable"].values()), summary["parameters"]
    parts = " + ".join(f"{part} {n:,}" for part, n in summary["trainable"].items())
    batch = summary["batch"]
    factors = [batch["gradient_accumulation_steps"], batch["processes"]]
    batch_size = " × ".join(map(str, [batch["size"], *(n for n in factors if n > 1)]))
    fraction = f"{num_trainable / num_parameters:.2%}" if num_trainable < num_parameters else "all"
    lines = [
        f"sdft · {headline}",
        *data_lines,
        f"trainable  {parts} of {num_parameters:,} parameters ({fraction})",
        f"schedule   {summary['steps']} steps, batch {batch_size}, {summary['epochs']:g} epochs, {summary['resolution']} px",
    ]
    if summary["empty_caption"]:
        lines.append(f"text       empty captions are {summary['empty_caption']}")
    if summary["num_class_images"]:
        lines.append(f"prior      {summary['num_class_images']} class images, one per training image")
    tf32 = ", TF32 allowed" if torch.backends.cudnn.allow_tf32 and not summary["device"].startswith("cpu") else ""
    lines.append(f"device     {summary['device']}, precision {summary['precision']}{tf32}")
    if summary["memory_gb_expected"] is not None:
        excluded = " (excluding libraries)" if summary["device"].startswith("cpu") else ""
        total = f" of {format_bytes(summary['memory_gb_device'] * GB)}" if summary["memory_gb_device"] else ""
        lines.append(f"memory     estimated {format_bytes(summary['memory_gb_expected'] * GB)}{excluded}{total}")
    print_text(*lines, f"output     {folder}")
    for line in summary["warnings"]:
        print_text(f"warning    {line}", file=sys.stderr)
    sys.stdout.flush()


def print_resume(step: int, steps: int, changed: dict[str, tuple]) -> None:
    """Where a run resumes, and the options that changed."""
    print_text(f"resume     from step {step} of {steps}", flush=True)
    for name, (old, new) in changed.items():
        print_text(f"changed    {name} from {old} to {new}", flush=True)
