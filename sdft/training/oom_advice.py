"""Turn out-of-memory and disk-full errors into one line, with options that reduce memory."""

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sdft.runs.resume import describe_resumption

OUT_OF_MEMORY_PATTERN = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
OUT_OF_DISK_PATTERN = re.compile(
    r"PytorchStreamWriter failed|unexpected pos|No space left|StorageFull|File ?too ?large", re.IGNORECASE
)
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
SAMPLING_FILE = "sampling.py"
TRAINING_ADVICE = (
    "gradient_checkpointing=true, a smaller batch_size with more gradient_accumulation_steps, optimizer=adamw8bit or "
    "optimizer=adafactor, offload_blocks=0.5 for an adapter on a GPU, precision=bf16_weights and fused_backward=true for full "
    "fine-tuning, or a lower resolution"
)
SAMPLING_ADVICE = "a smaller sampling.batch_size"


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
def explain_resource_errors(cfg, folder: Path, trainer) -> Iterator[None]:
    """Replace out-of-memory and disk-full errors by a `ValueError` of one line."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            frames = traceback.extract_tb(error.__traceback__)
            is_sampling = any(Path(frame.filename).name == SAMPLING_FILE for frame in frames)
            activity = "sampling" if is_sampling else f"batch_size={cfg.batch_size} at {cfg.resolution} px"
            advice = SAMPLING_ADVICE if is_sampling else TRAINING_ADVICE
            message = f"out of memory at step {trainer.global_step} with {activity}; try {advice}"
        elif is_out_of_disk(error):
            message = f"{folder}: the disk is full at step {trainer.global_step}; earlier files are intact"
        else:
            raise
        raise ValueError(f"{message}; {describe_resume(folder, cfg.get('sweep'))}") from error


def describe_resume(folder: Path, sweep: str | None) -> str:
    from sdft.runs.checkpoint_file import find_latest_checkpoint

    if not (checkpoint := find_latest_checkpoint(folder / "checkpoints")):
        return "no checkpoint was saved"
    return f"{checkpoint.name} is saved, {describe_resumption(folder, sweep)}"
