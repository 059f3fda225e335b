"""Checkpoint files with atomic writes, fsync and a checksum.

A file is a `torch.save` archive with its format version, step and SHA-256 in the zip comment: plain `torch.load` opens it, but
does not detect corruption.
"""

import hashlib
import math
import os
import re
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

from sdft.runs.files import atomic_write, check_format_version, check_structure
from sdft.runs.terminal import print_text

CHECKPOINT_FORMAT = 1  # raised when an older version could misread a checkpoint, or this one older checkpoints
COMMENT = f"sdft format={CHECKPOINT_FORMAT:02d} step={{:012d}} sha256={{}}"
COMMENT_PATTERN = re.compile(rb"sdft (?:format=(\d\d) )?step=(\d{12}) sha256=(.{64})\Z", re.DOTALL)
CHECKPOINT_STRUCTURE = {"global_step": int, "state_dict?": dict, "callbacks?": dict, "optimizer_states?": list}
COMMENT_SIZE = len(COMMENT.format(0, "0" * 64))  # bytes; zip stores this size in the two bytes before the comment
BLOCK_SIZE = 2**22


def write_checkpoint(checkpoint: dict, path: Path) -> None:
    """Write to a temporary file and rename it, so that a failure leaves an existing file at `path` intact."""
    with atomic_write(path) as partial:
        torch.save(checkpoint, partial)
        size = partial.stat().st_size
        step = checkpoint["global_step"]
        comment = COMMENT.format(step, compute_digest(partial, size - 2, step)).encode()
        with open(partial, "r+b") as file:
            file.seek(size - 2)
            file.write(COMMENT_SIZE.to_bytes(2, "little") + comment)
            file.flush()
            os.fsync(file.fileno())
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # not supported by every file system
            os.fsync(folder)  # makes the rename durable
        os.close(folder)


def compute_digest(path: Path, size: int, step: int) -> str:
    """SHA-256 of the step and the first `size` bytes."""
    digest, remaining = hashlib.sha256(str(step).encode()), size
    with open(path, "rb") as file:
        while remaining and (block := file.read(min(BLOCK_SIZE, remaining))):
            digest.update(block)
            remaining -= len(block)
    return digest.hexdigest()


def find_damage(path: Path) -> str | None:
    """Describe the damage of a checkpoint file, or return None. A missing checksum, or bytes after it, are damage.

    Raises `ValueError` for another format version.
    """
    if comment := read_comment(path):
        step, digest = comment
        matches = digest == compute_digest(path, path.stat().st_size - COMMENT_SIZE - 2, step)
        return None if matches else "checksum mismatch, the file is corrupt"
    if zipfile.is_zipfile(path):
        return "no checksum at its end, the file is corrupt or of another program"
    return "truncated, or not a checkpoint"


def read_comment(path: Path) -> tuple[int, str] | None:
    """Step and SHA-256 from the zip comment, None without one. Raises `ValueError` for another format version."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - COMMENT_SIZE))
        match = COMMENT_PATTERN.search(file.read())
    if not match:
        return None
    check_format_version(int(match[1]) if match[1] else None, CHECKPOINT_FORMAT, path)
    return int(match[2]), match[3].decode("latin-1")


def read_checkpoint(path: Path) -> dict:
    """Load tensors and plain values. Raises `ValueError` for a damaged file, or one with other objects (not executed)."""
    from pickle import UnpicklingError

    if damage := find_damage(path):
        raise ValueError(f"{path}: {damage}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ValueError(f"{path}: contains other objects than tensors and plain values; only these load") from None
    check_structure(checkpoint, CHECKPOINT_STRUCTURE, str(path))
    return checkpoint


def find_latest_checkpoint(folder: Path) -> Path | None:
    """Return the undamaged checkpoint with the highest step, whatever its file time; warn about damaged ones."""
    for path in sorted(folder.glob("*.ckpt"), key=read_step, reverse=True):
        damage = find_damage(path)
        if not damage:
            return path
        print_text(f"warning    {path}: {damage}; using the previous checkpoint", flush=True)
    return None


def read_step(path: Path) -> float:
    """Step of a checkpoint file; infinity for a damaged one, which `find_latest_checkpoint` then reports first."""
    if comment := read_comment(path):
        return comment[0]
    return parse_step(path) or math.inf


def format_checkpoint_name(step: int) -> str:
    return f"step-{step:06d}.ckpt"


def parse_step(path: Path) -> int:
    """Step in the file name; 0 for other names, such as `last.ckpt`."""
    match = re.fullmatch(r"step-(\d+)\.ckpt", path.name)
    return int(match[1]) if match else 0


def prune_checkpoints(folder: Path, step: int, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints up to `step`; later steps are from before the run was rewound."""
    candidates = [file for file in folder.glob("*.ckpt") if 0 < parse_step(file) <= step]
    for file in sorted(candidates, key=parse_step)[:-keep]:
        file.unlink()
