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

from sdft.training.memory_estimate import Step, amount, learns, needs, room

NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
NO_DISK = re.compile(
    r"PytorchStreamWriter failed|unexpected pos|No space left|StorageFull|File ?too ?large", re.IGNORECASE
)
DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
MARGIN = 0.9  # of what was needed, when it was said to fit and did not
DRAWING = "sampling.py"


def out_of_memory(error: BaseException) -> bool:
    plain = isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (plain and bool(NO_MEMORY.search(str(error))))


def out_of_disk(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno in DISK) or bool(NO_DISK.search(str(error)))


@contextmanager
def advised(module, step: Step, cfg, folder: Path, trainer) -> Iterator[None]:
    """`ValueError` in one line in place of what torch and the system raise."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            drawn = any(Path(frame.filename).name == DRAWING for frame in traceback.extract_tb(error.__traceback__))
            told = memory_line(module, step, cfg, drawn, trainer.global_step)
        elif out_of_disk(error):
            told = f"{folder}: the disk is full at step {trainer.global_step}; earlier files are whole"
        else:
            raise
        raise ValueError(f"{told}; {go_on(folder)}") from error


def go_on(folder: Path) -> str:
    from sdft.runs.checkpoint_file import newest

    if not (found := newest(folder / "checkpoints")):
        return "nothing is saved to go on from"
    return f"{found.name} is saved, go on with resume={folder}"


def memory_line(module, step: Step, cfg, drawn: bool, at: int) -> str:
    what = f"{step.pictures} pictures drawn at once" if drawn else f"batch {step.batch_size} at {cfg.resolution} px"
    told = f"out of memory at step {at} with {what}"
    step = step if drawn else replace(step, pictures=0)  # each beside what it is that did not fit
    try:
        need = after(module, step, [])
    except Exception:  # of many kinds, as where weights are sharded; what is told is that memory ran out
        return f"{told}; give gradient_checkpointing=true, or a smaller batch_size or resolution"
    free, _ = room(step.device, needs(module, step).weights) or (need, None)
    there = f", {amount(free)} there" if free < need else ""
    limit = free if free < need else MARGIN * need
    found = enough(module, step, cfg, limit)
    return f"{told}: about {amount(need)} needed{there}; {found or 'no word makes it fit, choose a smaller model'}"


@dataclass
class Change:
    """Words that need less, as fields of `Step`; `lora` leaves next to nothing that learns."""

    words: str
    fields: dict
    note: str = ""
    lora: bool = False


def enough(module, step: Step, cfg, limit: float) -> str:
    """The least harmful words, two at most, each of which suffices alone; where none does, as many as together do."""
    found, families = [], changes(module, step, cfg)
    for family in families:
        for change in family:
            if (total := after(module, step, [change])) <= limit:
                found.append(f"{change.words} needs about {amount(total)}{change.note}")
                break
        if len(found) == 2:
            break
    if found:
        return ", or ".join(found)
    together = []
    for family in families:
        together.append(family[-1])
        if (total := after(module, step, together)) <= limit:
            return f"{' '.join(change.words for change in together)} need about {amount(total)}"
    return ""


def after(module, step: Step, together: list[Change]) -> int:
    """What is needed then."""
    fields = {key: value for change in together for key, value in change.fields.items()}
    found = needs(module, replace(step, **fields))
    if any(change.lora for change in together):
        found = replace(found, gradients=0, states=0, average=0)
    return replace(found, activations=0).total if step.pictures else found.total


def changes(module, step: Step, cfg) -> list[list[Change]]:
    """What this run can do without, in order of harm; of each kind from little to much."""
    sizes, model = [n for n in range(step.batch_size - 1, 0, -1) if step.batch_size % n == 0], module.model
    sides = [round(cfg.resolution * part / model.unit) * model.unit for part in (0.75, 0.5)]
    drawn = [n for n in (step.pictures // 2, 1) if 0 < n < step.pictures]
    eight = module.optimizer.func.__name__ == "AdamW" and find_spec("bitsandbytes")
    gpu = step.device.type == "cuda" and torch.cuda.is_bf16_supported()
    rests = cfg.cache == "off" and (cfg.crop != "random" or not learns(model.text_encoder))
    found = [
        [Change("gradient_checkpointing=true", {"checkpointing": True})] * (not cfg.gradient_checkpointing),
        [fewer(step, n) for n in sizes],
        [Change(f"sampling.batch_size={n}", {"pictures": n}) for n in drawn],
        [Change("optimizer=adamw8bit", {"optimizer": eight_bit})] * bool(eight),
        [Change("cache=disk", {"cached": True})] * rests,
        [Change("precision=bf16", {"compute": torch.bfloat16})] * (gpu and model.compute is torch.float32),
        [Change(f"resolution={side}", {"scale": side / cfg.resolution}) for side in sides if 0 < side < cfg.resolution],
        [Change("method=lora", {}, lora=True)] * (type(module.method).__name__ == "SFT"),
    ]
    return [family for family in found if family]


def fewer(step: Step, count: int) -> Change:
    many = step.batch_size * step.accumulate // count
    words = f"batch_size={count} gradient_accumulation_steps={many}"
    return Change(words, {"batch_size": count, "gradient_accumulation_steps": many}, " (the same result)")


def eight_bit(groups):
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups)
