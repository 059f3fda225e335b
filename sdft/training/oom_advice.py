"""Turn out-of-memory and disk-full errors into one line: required, available, and options that would fit."""

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from sdft.training.memory_estimate import (
    StepSpec,
    estimate_memory,
    format_bytes,
    get_free_and_total_memory,
    has_trainable_parameters,
)

OUT_OF_MEMORY_PATTERN = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
OUT_OF_DISK_PATTERN = re.compile(
    r"PytorchStreamWriter failed|unexpected pos|No space left|StorageFull|File ?too ?large", re.IGNORECASE
)
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
MEMORY_MARGIN = 0.9  # fraction of the estimate to stay below when a step that should have fit did not
SAMPLING_FILE = "sampling.py"


def is_out_of_memory(error: BaseException) -> bool:
    is_runtime_error = isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        is_runtime_error and bool(OUT_OF_MEMORY_PATTERN.search(str(error)))
    )


def is_out_of_disk(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS) or bool(
        OUT_OF_DISK_PATTERN.search(str(error))
    )


@contextmanager
def explain_resource_errors(module, step: StepSpec, cfg, folder: Path, trainer) -> Iterator[None]:
    """Replace out-of-memory and disk-full errors by a `ValueError` of one line."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            frames = traceback.extract_tb(error.__traceback__)
            is_sampling = any(Path(frame.filename).name == SAMPLING_FILE for frame in frames)
            message = format_memory_error(module, step, cfg, is_sampling, trainer.global_step)
        elif is_out_of_disk(error):
            message = f"{folder}: the disk is full at step {trainer.global_step}; earlier files are intact"
        else:
            raise
        raise ValueError(f"{message}; {describe_resume(folder)}") from error


def describe_resume(folder: Path) -> str:
    from sdft.runs.checkpoint_file import find_latest_checkpoint

    if not (checkpoint := find_latest_checkpoint(folder / "checkpoints")):
        return "no checkpoint was saved"
    return f"{checkpoint.name} is saved, resume with resume={folder}"


def format_memory_error(module, step: StepSpec, cfg, is_sampling: bool, global_step: int) -> str:
    batch = f"batch {step.batch_size} at {cfg.resolution} px"
    activity = f"{step.num_images} images sampled at once" if is_sampling else batch
    problem = f"out of memory at step {global_step} with {activity}"
    step = step if is_sampling else replace(step, num_images=0)  # estimate only the activity that failed
    try:
        required = estimate_total_with(module, step, [])
    except Exception:  # any type, as with sharded weights: report at least that memory ran out
        return f"{problem}; try gradient_checkpointing=true, or a smaller batch_size or resolution"
    weights = estimate_memory(module, step).weights
    free, _ = get_free_and_total_memory(step.device, weights) or (required, None)
    available = f", {format_bytes(free)} available" if free < required else ""
    limit = free if free < required else MEMORY_MARGIN * required
    advice = suggest_options(module, step, cfg, limit) or "no option reduces memory enough; use a smaller model"
    return f"{problem}: about {format_bytes(required)} required{available}; {advice}"


@dataclass
class MemoryOption:
    """Overrides that reduce memory, and the `StepSpec` fields they change; `lora` leaves almost nothing trainable."""

    overrides: str
    fields: dict
    note: str = ""
    lora: bool = False


def suggest_options(module, step: StepSpec, cfg, limit: float) -> str:
    """Up to two options that each suffice, least harmful first; otherwise the first combination that suffices."""
    suggestions, families = [], list_memory_options(module, step, cfg)
    for family in families:
        for option in family:
            if (total := estimate_total_with(module, step, [option])) <= limit:
                suggestions.append(f"{option.overrides} needs about {format_bytes(total)}{option.note}")
                break
        if len(suggestions) == 2:
            break
    if suggestions:
        return ", or ".join(suggestions)
    combined = []
    for family in families:
        combined.append(family[-1])
        if (total := estimate_total_with(module, step, combined)) <= limit:
            return f"{' '.join(option.overrides for option in combined)} need about {format_bytes(total)}"
    return ""


def estimate_total_with(module, step: StepSpec, options: list[MemoryOption]) -> int:
    """Total bytes of the step with these options."""
    fields = {key: value for option in options for key, value in option.fields.items()}
    estimate = estimate_memory(module, replace(step, **fields))
    if any(option.lora for option in options):
        estimate = replace(estimate, gradients=0, optimizer_states=0, ema=0)
    return replace(estimate, activations=0).total if step.num_images else estimate.total


def list_memory_options(module, step: StepSpec, cfg) -> list[list[MemoryOption]]:
    """Options that apply to this run: families by increasing harm, each from the mildest to the strongest."""
    model = module.model
    batch_sizes = [n for n in range(step.batch_size - 1, 0, -1) if step.batch_size % n == 0]
    sides = [round(cfg.resolution * part / model.size_multiple) * model.size_multiple for part in (0.75, 0.5)]
    sampling_batch_sizes = [n for n in (step.num_images // 2, 1) if 0 < n < step.num_images]
    can_use_8bit = module.optimizer.func.__name__ == "AdamW" and find_spec("bitsandbytes")
    has_bf16 = step.device.type == "cuda" and torch.cuda.is_bf16_supported()
    can_cache = cfg.cache == "off" and (cfg.crop != "random" or not has_trainable_parameters(model.text_encoder))
    families = [
        [MemoryOption("gradient_checkpointing=true", {"gradient_checkpointing": True})]
        * (not cfg.gradient_checkpointing),
        [reduce_batch_size(step, n) for n in batch_sizes],
        [MemoryOption(f"sampling.batch_size={n}", {"num_images": n}) for n in sampling_batch_sizes],
        [MemoryOption("optimizer=adamw8bit", {"optimizer": build_adamw8bit})] * bool(can_use_8bit),
        [MemoryOption("cache=disk", {"cached": True})] * can_cache,
        [MemoryOption("precision=bf16", {"compute_dtype": torch.bfloat16})]
        * (has_bf16 and model.compute_dtype is torch.float32),
        [
            MemoryOption(f"resolution={side}", {"image_scale": side / cfg.resolution})
            for side in sides
            if 0 < side < cfg.resolution
        ],
        [MemoryOption("method=lora", {}, lora=True)] * (type(module.method).__name__ == "FullFineTuning"),
    ]
    return [family for family in families if family]


def reduce_batch_size(step: StepSpec, batch_size: int) -> MemoryOption:
    accumulation = step.batch_size * step.gradient_accumulation_steps // batch_size
    fields = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    overrides = " ".join(f"{key}={value}" for key, value in fields.items())
    return MemoryOption(overrides, fields, " (same result)")


def build_adamw8bit(groups):
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups)
