"""What something is, by its content."""

import hashlib
from pathlib import Path

import torch
from torch import nn


def hash_file(path: Path) -> str | None:
    """SHA-256 of a file; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def hash_dataset(source) -> str:
    """SHA-256 of all pictures and their captions, in their order, in 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for index, captions in enumerate(source.all_captions()):
        digest.update(f"{source.digest(index)} {captions!r}\n".encode())
    return digest.hexdigest()[:16]


def hash_weights(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers, with their names, types and shapes, in 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(dtype=torch.uint8).numpy())
    return digest.hexdigest()[:16]
