"""Loud before the first step: what will happen, and a stop for what would silently ruin a run."""

import platform
import sys
from collections import Counter
from pathlib import Path

import torch

from sdft.models.cpu_threads import threads
from sdft.training.export.modelspec import architecture
from sdft.training.memory_estimate import GB, Step, amount, needs, room

LATE_WARMUP = 0.2  # a longer warm-up leaves the run no time to settle


def inspect(module, samples, loop, schedule, trainer, step: Step) -> dict:
    """Facts of the run that is about to start; `warnings` is a list of lines, `step` its largest."""
    model, steps, world = module.model, trainer.max_steps, trainer.world_size
    learned = {part: count(p for p in net.parameters() if p.requires_grad) for part, net in model.parts.items()}
    memories, lines = memory(module, step) if trainer.is_global_zero else ({}, [])
    return {
        "learns": {part: n for part, n in learned.items() if n},
        "parameters": module.size,
        "images": len(samples),
        "class_images": sum(len(part) for part in samples.parts[1:]),
        "steps": steps,
        "epochs": round(steps / samples.plan.steps_an_epoch, 2),
        "buckets": {f"{w}x{h}": n for (w, h), n in sorted(Counter(samples.parts[0].sizes).items())},
        "batch": {"size": loop.batch_size, "gradient_accumulation_steps": loop.gradient_accumulation_steps, "processes": world},
        "resolution": samples.settings.resolution,
        "prediction_type": model.prediction_type,
        "base": model.name,
        "architecture": architecture(model),
        "precision": str(trainer.precision),
        "device": device_name(trainer.strategy.root_device, threads(model.unet, step.latents)),
        "seed": loop.seed,
        **memories,
        "warnings": [*warnings(schedule, steps), *lines],
    }


def warnings(schedule, steps: int):
    """What a user should know before waiting for hours."""
    if (warmup := schedule.warmup_steps(steps)) > LATE_WARMUP * steps:
        yield f"warm-up takes {warmup} of {steps} steps; more than a fifth leaves little time at the full rate"


def memory(module, step: Step) -> tuple[dict, list[str]]:
    """Gigabytes that training needs on the device, and that it has, None where that cannot be known; and what to warn about."""
    try:
        need = needs(module, step)
    except Exception as error:  # of many kinds: a network may do what cannot be done without content
        why = (str(error).splitlines() or [type(error).__name__])[0]
        return {"memory_gb_expected": None}, [f"memory is not estimated: {why}"]
    facts = {"memory_gb_expected": round(need.total / GB, 4), "memory_gb_device": None}
    if (there := room(step.device, need.weights)) is None:
        return facts, []
    free, size = there
    short = f"about {amount(need.total)} of memory are needed and {amount(free)} are free: training may stop for it"
    return facts | {"memory_gb_device": round(size / GB, 2)}, [short] if need.total > free else []


def count(parameters) -> int:
    return sum(p.numel() for p in parameters)


def device_name(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {threads} thread{'s' if threads > 1 else ''})"


def announce(plan: dict, headline: str, data: list[str], folder: Path) -> None:
    """Print the plan."""
    learned = sum(plan["learns"].values())
    parts = " + ".join(f"{PART_NAMES[part]} {n:,}" for part, n in plan["learns"].items())
    batch = plan["batch"]
    factors = [str(batch["size"])] + [str(n) for n in (batch["gradient_accumulation_steps"], batch["processes"]) if n > 1]
    share = f"{learned / plan['parameters']:.2%}" if learned < plan["parameters"] else "all"
    print("\n".join([f"sdft · {headline}", *data]))
    print(f"learns   {parts} of {plan['parameters']:,} ({share})")
    print(
        f"runs     {plan['steps']} steps × batch {' × '.join(factors)} · {plan['epochs']:g} epochs · {plan['resolution']} px"
    )
    if plan["class_images"]:
        print(f"prior    {plan['class_images']} class images, one beside every picture of a batch")
    print(f"on       {plan['device']} · {plan['precision']}")
    if plan["memory_gb_expected"] is not None:
        whose = ", beside the libraries, of the machine's" if plan["device"].startswith("cpu") else " of the device's"
        of = f"{whose} {amount(plan['memory_gb_device'] * GB)}" if plan["memory_gb_device"] else ""
        print(f"needs    about {amount(plan['memory_gb_expected'] * GB)}{of}")
    print(f"writes   {folder}")
    for line in plan["warnings"]:
        print(f"warning  {line}", file=sys.stderr)
    sys.stdout.flush()


PART_NAMES = {"unet": "UNet", "text_encoder": "text encoder"}
