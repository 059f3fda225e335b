"""SHA-256 hashes of files, datasets and weights. Weights are hashed once per process, until they change."""

import hashlib
import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

import sdft.distributed as processes
from sdft.runs.files import get_identity, write_cache_file

DIGESTS = Path("outputs/cache/digests")  # of large files, each in a file named by the identity of the other
WORD_BYTES = 8  # of the integers that `sum_words` adds

# digests by the checksum of the weights: of each module, and of all modules loaded from the same files
module_digests: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()
source_digests: dict[Hashable, dict[str, str]] = {}


def hash_file(path: Path) -> str | None:
    """SHA-256 of a file; None if it does not exist."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_large_file(path: Path) -> str:
    """SHA-256 of a file, remembered by later runs until the file changes."""
    identity = get_identity(path)
    record = DIGESTS / hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    if record.is_file() and re.fullmatch("[0-9a-f]{64}", text := record.read_text(encoding="utf-8", errors="replace")):
        return text
    digest = hash_file(path)
    if get_identity(path) == identity:
        write_cache_file(record, lambda file: file.write_text(digest, encoding="utf-8"))
    return digest


def hash_dataset(source) -> str:
    """SHA-256 of all images and captions, in dataset order, as 16 hexadecimal digits."""
    source.sizes()  # inspects all images, in threads
    digest = hashlib.sha256()
    for index, captions in enumerate(source.all_captions()):
        digest.update(f"{source.digest(index)} {captions!r}\n".encode())
    return digest.hexdigest()[:16]


def hash_weights(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers, with their names, dtypes and shapes, as 16 hexadecimal digits.

    Cached per module, and per source (`share_digests`), until a checksum finds that the weights have changed.
    """
    weights, digests = model.state_dict(), module_digests.setdefault(model, {})
    checksum = compute_checksum(weights)
    if checksum not in digests:
        digests[checksum] = compute_weights_digest(weights.items())
    return digests[checksum]


def hash_weights_on_rank_0(model: nn.Module) -> str:
    """Like `hash_weights`, of the weights of rank 0. Collective."""
    return processes.broadcast(hash_weights(model) if processes.rank() == 0 else None)


def share_digests(model: nn.Module, source: Hashable) -> None:
    """Share the cached digests of modules with equal `source`, which identifies the files that they were loaded from."""
    module_digests[model] = source_digests.setdefault(source, {})


def compute_weights_digest(weights: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in weights:
        digest.update(describe_tensor(name, tensor).encode())
        digest.update(view_bytes(tensor).cpu().numpy())
    return digest.hexdigest()[:16]


def compute_checksum(weights: dict[str, Tensor]) -> str:
    """Hash of the names, dtypes, shapes and sums of all tensors; 15 times faster than SHA-256 of the weights.

    Every update of training changes it. It is no proof that weights of different files are equal.
    """
    sums = [sum_words(tensor) for tensor in weights.values()]
    values = torch.stack([part.cpu() for part in sums]).tolist() if sums else []
    lines = [describe_tensor(name, tensor) for name, tensor in weights.items()]
    return hashlib.sha256(repr([lines, values]).encode()).hexdigest()


def sum_words(tensor: Tensor) -> Tensor:
    """Sum `[]` of the tensor's memory as 64-bit integers, modulo 2^64."""
    data = view_bytes(tensor)
    if data.data_ptr() % WORD_BYTES or data.storage_offset() % WORD_BYTES:
        data = data.clone()
    end = len(data) // WORD_BYTES * WORD_BYTES
    return data[:end].view(torch.int64).sum() + data[end:].sum()


def describe_tensor(name: str, tensor: Tensor) -> str:
    return f"{name} {tensor.dtype} {tuple(tensor.shape)}"


def view_bytes(tensor: Tensor) -> Tensor:
    """The tensor's elements as bytes `[n]`."""
    return tensor.detach().contiguous().reshape(-1).view(dtype=torch.uint8)
