"""What ran out, memory or disk, in one line: what was needed, what was there, and the words that would help this run."""

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
MEMORY_MARGIN = 0.9  # of what was needed, when it was said to fit and did not
SAMPLING_FILE = "sampling.py"


def is_out_of_memory(error: BaseException) -> bool:
    plain = isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        plain and bool(OUT_OF_MEMORY_PATTERN.search(str(error)))
    )


def is_out_of_disk(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS) or bool(
        OUT_OF_DISK_PATTERN.search(str(error))
    )


@contextmanager
def explain_resource_errors(module, step: StepSpec, cfg, folder: Path, trainer) -> Iterator[None]:
    """`ValueError` in one line in place of what torch and the system raise."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            drawn = any(
                Path(frame.filename).name == SAMPLING_FILE for frame in traceback.extract_tb(error.__traceback__)
            )
            told = format_memory_error(module, step, cfg, drawn, trainer.global_step)
        elif is_out_of_disk(error):
            told = f"{folder}: the disk is full at step {trainer.global_step}; earlier files are whole"
        else:
            raise
        raise ValueError(f"{told}; {describe_resume(folder)}") from error


def describe_resume(folder: Path) -> str:
    from sdft.runs.checkpoint_file import find_latest_checkpoint

    if not (found := find_latest_checkpoint(folder / "checkpoints")):
        return "nothing is saved to go on from"
    return f"{found.name} is saved, go on with resume={folder}"


def format_memory_error(module, step: StepSpec, cfg, drawn: bool, at: int) -> str:
    what = f"{step.num_images} pictures drawn at once" if drawn else f"batch {step.batch_size} at {cfg.resolution} px"
    told = f"out of memory at step {at} with {what}"
    step = step if drawn else replace(step, num_images=0)  # each beside what it is that did not fit
    try:
        need = estimate_total_with(module, step, [])
    except Exception:  # of many kinds, as where weights are sharded; what is told is that memory ran out
        return f"{told}; give gradient_checkpointing=true, or a smaller batch_size or resolution"
    free, _ = get_free_and_total_memory(step.device, estimate_memory(module, step).weights) or (need, None)
    there = f", {format_bytes(free)} there" if free < need else ""
    limit = free if free < need else MEMORY_MARGIN * need
    found = suggest_options(module, step, cfg, limit)
    return (
        f"{told}: about {format_bytes(need)} needed{there}; {found or 'no word makes it fit, choose a smaller model'}"
    )


@dataclass
class MemoryOption:
    """Words that need less, as fields of `Step`; `lora` leaves next to nothing that learns."""

    words: str
    fields: dict
    note: str = ""
    lora: bool = False


def suggest_options(module, step: StepSpec, cfg, limit: float) -> str:
    """The least harmful words, two at most, each of which suffices alone; where none does, as many as together do."""
    found, families = [], list_memory_options(module, step, cfg)
    for family in families:
        for change in family:
            if (total := estimate_total_with(module, step, [change])) <= limit:
                found.append(f"{change.words} needs about {format_bytes(total)}{change.note}")
                break
        if len(found) == 2:
            break
    if found:
        return ", or ".join(found)
    together = []
    for family in families:
        together.append(family[-1])
        if (total := estimate_total_with(module, step, together)) <= limit:
            return f"{' '.join(change.words for change in together)} need about {format_bytes(total)}"
    return ""


def estimate_total_with(module, step: StepSpec, together: list[MemoryOption]) -> int:
    """What is needed then."""
    fields = {key: value for change in together for key, value in change.fields.items()}
    found = estimate_memory(module, replace(step, **fields))
    if any(change.lora for change in together):
        found = replace(found, gradients=0, states=0, average=0)
    return replace(found, activations=0).total if step.num_images else found.total


def list_memory_options(module, step: StepSpec, cfg) -> list[list[MemoryOption]]:
    """What this run can do without, in order of harm; of each kind from little to much."""
    sizes, model = [n for n in range(step.batch_size - 1, 0, -1) if step.batch_size % n == 0], module.model
    sides = [round(cfg.resolution * part / model.size_multiple) * model.size_multiple for part in (0.75, 0.5)]
    drawn = [n for n in (step.num_images // 2, 1) if 0 < n < step.num_images]
    eight = module.optimizer.func.__name__ == "AdamW" and find_spec("bitsandbytes")
    gpu = step.device.type == "cuda" and torch.cuda.is_bf16_supported()
    rests = cfg.cache == "off" and (cfg.crop != "random" or not has_trainable_parameters(model.text_encoder))
    found = [
        [MemoryOption("gradient_checkpointing=true", {"checkpointing": True})] * (not cfg.gradient_checkpointing),
        [reduce_batch_size(step, n) for n in sizes],
        [MemoryOption(f"sampling.batch_size={n}", {"pictures": n}) for n in drawn],
        [MemoryOption("optimizer=adamw8bit", {"optimizer": build_adamw8bit})] * bool(eight),
        [MemoryOption("cache=disk", {"cached": True})] * rests,
        [MemoryOption("precision=bf16", {"compute_dtype": torch.bfloat16})]
        * (gpu and model.compute_dtype is torch.float32),
        [
            MemoryOption(f"resolution={side}", {"scale": side / cfg.resolution})
            for side in sides
            if 0 < side < cfg.resolution
        ],
        [MemoryOption("method=lora", {}, lora=True)] * (type(module.method).__name__ == "FullFineTuning"),
    ]
    return [family for family in found if family]


def reduce_batch_size(step: StepSpec, count: int) -> MemoryOption:
    many = step.batch_size * step.accumulate // count
    words = f"batch_size={count} gradient_accumulation_steps={many}"
    return MemoryOption(words, {"batch_size": count, "gradient_accumulation_steps": many}, " (the same result)")


def build_adamw8bit(groups):
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups)
