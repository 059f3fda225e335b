"""Checkpoint files that appear whole, are on the disk before training goes on, and tell when a byte of them has changed.

A file is what `torch.save` writes, with its step and SHA-256 as the comment of the zip archive that it is: plain `torch.load`
opens it, but would not notice a changed byte.
"""

import hashlib
import math
import os
import re
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

from sdft.runs.files import atomic_write

COMMENT = "sdft step={:012d} sha256={}"
COMMENT_SIZE = len(COMMENT.format(0, "0" * 64))  # of the comment, whose own size stands in the two bytes before it
BLOCK_SIZE = 2**22


def write_checkpoint(checkpoint: dict, path: Path) -> None:
    """Beside `path` first, so that nothing that goes wrong touches an earlier file there."""
    with atomic_write(path) as partial:
        torch.save(checkpoint, partial)
        size = partial.stat().st_size
        note = COMMENT.format(checkpoint["global_step"], hash_prefix(partial, size - 2)).encode()
        with open(partial, "r+b") as file:
            file.seek(size - 2)
            file.write(COMMENT_SIZE.to_bytes(2, "little") + note)
            file.flush()
            os.fsync(file.fileno())
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # of mounts that cannot
            os.fsync(folder)  # the new name, too
        os.close(folder)


def hash_prefix(path: Path, size: int) -> str:
    """SHA-256 of the first `size` bytes."""
    found, left = hashlib.sha256(), size
    with open(path, "rb") as file:
        while left and (block := file.read(min(BLOCK_SIZE, left))):
            found.update(block)
            left -= len(block)
    return found.hexdigest()


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, if anything; of one without a checksum, whether it is an archive at all."""
    if told := read_comment(path):
        fits = told[1] == hash_prefix(path, path.stat().st_size - COMMENT_SIZE - 2)
        return None if fits else "its checksum does not fit its content"
    return None if zipfile.is_zipfile(path) else "it is cut off, or no checkpoint"


def read_comment(path: Path) -> tuple[int, str] | None:
    """Step and SHA-256, as a file of this project tells them."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - COMMENT_SIZE))
        told = re.fullmatch(rb"sdft step=(\d{12}) sha256=(.{64})", file.read(), re.DOTALL)
    return (int(told[1]), told[2].decode("latin-1")) if told else None


def read_checkpoint(path: Path) -> dict:
    """Tensors and plain values alone: a file that holds code is refused, and its code not run."""
    from pickle import UnpicklingError

    if fault := find_damage(path):
        raise ValueError(f"{path}: {fault}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ValueError(f"{path}: holds more than tensors and plain values; only those are loaded") from None


def find_latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest step that is whole, whatever the clock said; damaged ones are named and passed over."""
    for path in sorted(folder.glob("*.ckpt"), key=read_step, reverse=True):
        fault = find_damage(path)
        if not fault:
            return path
        print(f"warning  {path}: {fault}; going back to the one before", flush=True)
    return None


def read_step(path: Path) -> float:
    """Its step; what cannot say is looked at first, and found damaged."""
    if told := read_comment(path):
        return told[0]
    return parse_step(path) or (math.inf if find_damage(path) else read_checkpoint(path)["global_step"])


def format_checkpoint_name(step: int) -> str:
    return f"step-{step:06d}.ckpt"


def parse_step(path: Path) -> int:
    """As its name says; 0 of others, such as the last one of a run."""
    found = re.fullmatch(r"step-(\d+)\.ckpt", path.name)
    return int(found[1]) if found else 0


def prune_checkpoints(folder: Path, step: int, keep: int) -> None:
    """Remove all but the `keep` newest of the checkpoints of steps up to `step`; later ones are of another life of the run."""
    there = [file for file in folder.glob("*.ckpt") if 0 < parse_step(file) <= step]
    for file in sorted(there, key=parse_step)[:-keep]:
        file.unlink()
