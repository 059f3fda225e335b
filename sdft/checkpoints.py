"""Checkpoint files that appear whole, are on the disk before training goes on, and tell when a byte of them has changed.

A file is what `torch.save` writes, with its SHA-256 as the comment of the zip archive that it is: plain `torch.load` opens it,
but would not notice a changed byte.
"""

import hashlib
import os
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

from sdft.files import whole

NOTE = b"sdft sha256="
SIZE = len(NOTE) + 64  # of the comment, whose own size stands in the two bytes before it
BLOCK = 2**22


def write(checkpoint: dict, path: Path) -> None:
    """Beside `path` first, so that nothing that goes wrong touches an earlier file there."""
    with whole(path) as partial:
        torch.save(checkpoint, partial)
        size = partial.stat().st_size
        note = NOTE + digest(partial, size - 2).encode()
        with open(partial, "r+b") as file:
            file.seek(size - 2)
            file.write(SIZE.to_bytes(2, "little") + note)
            file.flush()
            os.fsync(file.fileno())
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # of mounts that cannot
            os.fsync(folder)  # the new name, too
        os.close(folder)


def digest(path: Path, size: int) -> str:
    """SHA-256 of the first `size` bytes."""
    found, left = hashlib.sha256(), size
    with open(path, "rb") as file:
        while left and (block := file.read(min(BLOCK, left))):
            found.update(block)
            left -= len(block)
    return found.hexdigest()


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, if anything; of one without a checksum, whether it is an archive at all."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - SIZE))
        note = file.read()
    if note.startswith(NOTE):
        return (
            None if note == NOTE + digest(path, size - SIZE - 2).encode() else "its checksum does not fit its content"
        )
    return None if zipfile.is_zipfile(path) else "it is cut off, or no checkpoint"


def read(path: Path) -> dict:
    """Tensors and plain values alone: a file that holds code is refused, and its code not run."""
    from pickle import UnpicklingError

    if fault := damage(path):
        raise ValueError(f"{path}: {fault}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ValueError(f"{path}: holds more than tensors and plain values; only those are loaded") from None


def newest(folder: Path) -> Path | None:
    """The newest checkpoint of a folder that is whole; damaged ones are named and passed over."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True):
        fault = damage(path)
        if not fault:
            return path
        print(f"warning  {path}: {fault}; going back to the one before", flush=True)
    return None
