"""Loud before the first step: what will happen, and a stop for what would silently ruin a run."""

import platform
import sys
from collections import Counter
from pathlib import Path

import torch

from sdft.models.cpu_threads import choose_num_threads
from sdft.training.export.modelspec import get_modelspec_architecture
from sdft.training.memory_estimate import GB, StepSpec, estimate_memory, format_bytes, get_free_and_total_memory

MAX_WARMUP_FRACTION = 0.2  # a longer warm-up leaves the run no time to settle


def collect_run_summary(module, samples, loop, schedule, trainer, step: StepSpec) -> dict:
    """Facts of the run that is about to start; `warnings` is a list of lines, `step` its largest."""
    model, steps, world = module.model, trainer.max_steps, trainer.world_size
    learned = {
        part: count_parameters(p for p in net.parameters() if p.requires_grad) for part, net in model.parts.items()
    }
    memories, lines = check_memory(module, step) if trainer.is_global_zero else ({}, [])
    return {
        "trainable": {part: n for part, n in learned.items() if n},
        "parameters": module.num_base_parameters,
        "images": len(samples),
        "class_images": sum(len(part) for part in samples.datasets[1:]),
        "steps": steps,
        "epochs": round(steps / samples.plan.steps_per_epoch, 2),
        "buckets": {f"{w}x{h}": n for (w, h), n in sorted(Counter(samples.datasets[0].sizes).items())},
        "batch": {
            "size": loop.batch_size,
            "gradient_accumulation_steps": loop.gradient_accumulation_steps,
            "processes": world,
        },
        "resolution": samples.settings.resolution,
        "prediction_type": model.prediction_type,
        "base": model.name,
        "architecture": get_modelspec_architecture(model),
        "precision": str(trainer.precision),
        "device": format_device(trainer.strategy.root_device, choose_num_threads(model.unet, step.latent_shape)),
        "seed": loop.seed,
        **memories,
        "warnings": [*list_schedule_warnings(schedule, steps), *lines],
    }


def list_schedule_warnings(schedule, steps: int):
    """What a user should know before waiting for hours."""
    if (warmup := schedule.warmup_steps(steps)) > MAX_WARMUP_FRACTION * steps:
        yield f"warm-up takes {warmup} of {steps} steps; more than a fifth leaves little time at the full rate"


def check_memory(module, step: StepSpec) -> tuple[dict, list[str]]:
    """Gigabytes that training needs on the device, and that it has, None where that cannot be known; and what to warn about."""
    try:
        need = estimate_memory(module, step)
    except Exception as error:  # of many kinds: a network may do what cannot be done without content
        why = (str(error).splitlines() or [type(error).__name__])[0]
        return {"memory_gb_expected": None}, [f"memory is not estimated: {why}"]
    facts = {"memory_gb_expected": round(need.total / GB, 4), "memory_gb_device": None}
    if (there := get_free_and_total_memory(step.device, need.weights)) is None:
        return facts, []
    free, size = there
    short = f"about {format_bytes(need.total)} of memory are needed and {format_bytes(free)} are free: training may stop for it"
    return facts | {"memory_gb_device": round(size / GB, 2)}, [short] if need.total > free else []


def count_parameters(parameters) -> int:
    return sum(p.numel() for p in parameters)


def format_device(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {threads} thread{'s' if threads > 1 else ''})"


def print_run_summary(plan: dict, headline: str, data: list[str], folder: Path) -> None:
    """Print the plan."""
    learned = sum(plan["trainable"].values())
    parts = " + ".join(f"{PART_NAMES[part]} {n:,}" for part, n in plan["trainable"].items())
    batch = plan["batch"]
    factors = [str(batch["size"])] + [
        str(n) for n in (batch["gradient_accumulation_steps"], batch["processes"]) if n > 1
    ]
    share = f"{learned / plan['parameters']:.2%}" if learned < plan["parameters"] else "all"
    print("\n".join([f"sdft · {headline}", *data]))
    print(f"trainable   {parts} of {plan['parameters']:,} ({share})")
    print(
        f"runs     {plan['steps']} steps × batch {' × '.join(factors)} · {plan['epochs']:g} epochs · {plan['resolution']} px"
    )
    if plan["class_images"]:
        print(f"prior    {plan['class_images']} class images, one beside every picture of a batch")
    print(f"on       {plan['device']} · {plan['precision']}")
    if plan["memory_gb_expected"] is not None:
        whose = ", beside the libraries, of the machine's" if plan["device"].startswith("cpu") else " of the device's"
        of = f"{whose} {format_bytes(plan['memory_gb_device'] * GB)}" if plan["memory_gb_device"] else ""
        print(f"needs    about {format_bytes(plan['memory_gb_expected'] * GB)}{of}")
    print(f"writes   {folder}")
    for line in plan["warnings"]:
        print(f"warning  {line}", file=sys.stderr)
    sys.stdout.flush()


PART_NAMES = {"unet": "UNet", "text_encoder": "text encoder"}
