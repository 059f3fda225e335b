"""SHA-256 hashes of files, datasets and weights."""

import hashlib
from pathlib import Path

import torch
from torch import nn


def hash_file(path: Path) -> str | None:
    """SHA-256 of a file; None if it does not exist."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_dataset(source) -> str:
    """SHA-256 of all images and captions, in dataset order, as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for index, captions in enumerate(source.all_captions()):
        digest.update(f"{source.digest(index)} {captions!r}\n".encode())
    return digest.hexdigest()[:16]


def hash_weights(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers, with their names, dtypes and shapes, as 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(dtype=torch.uint8).numpy())
    return digest.hexdigest()[:16]
