"""Cache of tensors by 16-byte key, in memory or in safetensors files; each entry has a checksum.

A file holds groups of entries with equal shapes: `GROUP.FIELD` `[n, …]`, `GROUP.keys` `[n, 16]` and `GROUP.checksums` `[n]`.
"""

import hashlib
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import sdft.distributed as processes
from sdft.data.file_index import map_in_threads
from sdft.runs.files import atomic_write
from sdft.runs.terminal import print_text

KEY_SIZE = 16  # bytes
KEY_TYPE = np.dtype(f"S{KEY_SIZE}")
KEYS, CHECKSUMS = "keys", "checksums"

CacheEntry = dict[str, Tensor]


@dataclass
class Group:
    """Entries of equal shapes: in memory, or under a number in a file."""

    path: Path | None
    number: int
    tensors: dict[str, Tensor] | None = None  # fields, keys and checksums; memory-mapped if there is a file

    def __getstate__(self):
        return self.__dict__ | ({"tensors": None} if self.path else {})  # each worker maps the files itself

    def load(self) -> dict[str, Tensor]:
        if self.tensors is None:
            self.tensors = map_file(self.path)[self.number]
        return self.tensors

    def load_fields(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.load().items() if name not in (KEYS, CHECKSUMS)}


class TensorCache:
    """Cache entries by key. With a folder: memory-mapped files, written atomically and reused by later runs."""

    def __init__(self, folder: Path | None, is_writable: bool = True):
        self.folder, self.is_writable, self.groups = folder, is_writable, []
        self.keys, self.positions = np.zeros(0, KEY_TYPE), np.zeros(0, np.int64)
        self.unsorted: list[tuple[np.ndarray, np.ndarray]] = []
        for path in sorted(folder.glob("*.safetensors")) if folder else ():
            self.index_valid_file(path)

    def index_valid_file(self, path: Path) -> None:
        """Index a file, or delete it if it is truncated, as after a full disk or an interrupted copy, or has no checksums."""
        try:
            self.index_file(path)
        except FileNotFoundError:
            return  # deleted by rank 0
        except ValueError:
            if processes.rank() == 0:
                print_text(f"cache      {path}: damaged file; its entries are computed again", flush=True)
                if self.is_writable:
                    path.unlink(missing_ok=True)

    def index_file(self, path: Path) -> None:
        for number, tensors in map_file(path).items():
            self.index_group(Group(path, number, tensors))

    def index_group(self, group: Group) -> None:
        keys = np.ascontiguousarray(group.load()[KEYS].numpy()).view(KEY_TYPE).reshape(-1)
        positions = (len(self.groups) << 32) + np.arange(len(keys))
        self.unsorted.append((keys, positions))
        self.groups.append(group)

    def sort_index(self) -> None:
        if self.unsorted:
            keys, positions = zip((self.keys, self.positions), *self.unsorted, strict=True)
            keys, positions, self.unsorted = np.concatenate(keys), np.concatenate(positions), []
            order = np.argsort(keys, kind="stable")
            self.keys, self.positions = keys[order], positions[order]

    def contains(self, keys: np.ndarray) -> np.ndarray:
        """Whether there is an entry for each of `keys`."""
        self.sort_index()
        if not len(self.keys):
            return np.zeros(len(keys), bool)
        return self.keys[np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)] == keys

    def __contains__(self, key: bytes) -> bool:
        self.sort_index()
        index = np.searchsorted(self.keys, key)
        return index < len(self.keys) and self.keys[index] == key.rstrip(b"\0")

    def __getitem__(self, key: bytes) -> CacheEntry:
        if key not in self:
            raise KeyError(key)
        group, row = divmod(int(self.positions[np.searchsorted(self.keys, key)]), 1 << 32)
        return {name: tensor[row] for name, tensor in self.groups[group].load_fields().items()}

    def drop_damaged(self, keys: np.ndarray | list[bytes]) -> int:
        """Remove the entries of `keys` whose checksum is wrong; returns how many. Each rank checks by itself."""
        keys = np.asarray(keys, KEY_TYPE)
        self.sort_index()
        indices = np.flatnonzero(np.isin(self.keys, keys))
        indices = indices[np.argsort(self.positions[indices] >> 32, kind="stable")]
        numbers = self.positions[indices] >> 32

        def find_damaged(number: int) -> list[int]:
            members = indices[slice(*np.searchsorted(numbers, [number, number + 1]))]
            checksums = compute_checksums(self.groups[number].load(), self.positions[members] & 0xFFFFFFFF)
            pairs = zip(members.tolist(), checksums, strict=True)
            return [index for index, (stored, actual) in pairs if stored != actual]

        damaged = [index for part in map_in_threads(find_damaged, np.unique(numbers)) for index in part]
        if not damaged:
            return 0
        before = np.unique(self.keys[indices]).size
        self.keys, self.positions = np.delete(self.keys, damaged), np.delete(self.positions, damaged)
        return before - np.intersect1d(self.keys, keys).size

    def add_from_all_ranks(self, entries: dict[bytes, CacheEntry]) -> None:
        """Add the entries of all ranks on every rank; rank 0 writes the file. Collective."""
        if self.folder is None or not self.is_writable:
            for part in processes.all_gather(entries):
                for number, tensors in enumerate(stack_entries(part)):
                    self.index_group(Group(None, number, tensors))
            return
        parts, written = processes.gather(entries), None
        if parts:
            try:
                written = self.write({key: entry for part in parts for key, entry in part.items()})
            except OSError as error:
                written = f"{self.folder}: {error.strerror}; what has been written is kept; free disk space, or give cache=ram"
        if isinstance(written := processes.broadcast(written), str):
            raise ValueError(written)
        if not written.is_file():
            raise ValueError(
                f"{written}: written by rank 0 but not visible to this process; give cache=ram, or use a shared folder"
            )
        self.index_file(written)

    def write(self, entries: dict[bytes, CacheEntry]) -> Path:
        """Write the entries to one file."""
        from safetensors.torch import save

        groups = stack_entries(entries)
        tensors = {f"{number}.{name}": t for number, group in enumerate(groups) for name, t in group.items()}
        path = self.folder / f"{hashlib.sha256(repr(sorted(entries)).encode()).hexdigest()[:16]}.safetensors"
        with atomic_write(path) as file:
            file.write_bytes(save(tensors))
        return path


def map_file(path: Path) -> dict[int, dict[str, Tensor]]:
    """Memory-mapped tensors of a file by group number and name; `ValueError` for a damaged file."""
    from safetensors import SafetensorError, safe_open

    groups: dict[int, dict[str, Tensor]] = defaultdict(dict)
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                number, field = name.split(".")
                groups[int(number)][field] = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from None
    for tensors in groups.values():
        keys, checksums = tensors.get(KEYS), tensors.get(CHECKSUMS)
        if keys is None or checksums is None or keys.dtype != torch.uint8 or keys.shape[1:] != (KEY_SIZE,):
            raise ValueError(f"{path}: no checksums")
        if any(len(tensor) != len(keys) for tensor in tensors.values()):
            raise ValueError(f"{path}: lengths differ")
    return groups


def stack_entries(entries: dict[bytes, CacheEntry]) -> list[dict[str, Tensor]]:
    """Groups of entries with equal shapes."""
    members = defaultdict(list)
    for key, entry in entries.items():
        members[tuple((name, tensor.dtype, tensor.shape) for name, tensor in sorted(entry.items()))].append(key)
    groups = []
    for fields, keys in members.items():
        group = {name: torch.stack([entries[key][name] for key in keys]) for name, *_ in fields}
        padded = b"".join(key.ljust(KEY_SIZE, b"\0") for key in keys)
        group[KEYS] = torch.tensor(list(padded), dtype=torch.uint8).reshape(-1, KEY_SIZE)
        group[CHECKSUMS] = torch.zeros(len(keys), dtype=torch.int64)
        group[CHECKSUMS] = torch.tensor([actual for _, actual in compute_checksums(group, range(len(keys)))])
        groups.append(group)
    return groups


def compute_checksums(tensors: dict[str, Tensor], rows) -> list[tuple[int, int]]:
    """Stored and actual CRC-32 of key, names, shapes and content of the entries at `rows`."""
    parts = sorted(name for name in tensors if name not in (KEYS, CHECKSUMS))
    start = zlib.crc32(repr([(name, tensors[name].dtype, tuple(tensors[name].shape[1:])) for name in parts]).encode())
    arrays = [tensors[name].reshape(len(tensors[KEYS]), -1).view(torch.uint8).numpy() for name in (KEYS, *parts)]
    stored, checksums = tensors[CHECKSUMS].tolist(), []
    for row in rows:
        checksum = start
        for array in arrays:
            checksum = zlib.crc32(array[row], checksum)
        checksums.append((stored[row], checksum))
    return checksums
