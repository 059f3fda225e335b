"""Lists of texts and of paths for very many images: one buffer instead of one object per entry."""

from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}


class TextList(Sequence):
    """A list of texts, in one UTF-8 buffer."""

    def __init__(self, texts: Iterable[str]):
        parts, ends = bytearray(), array("Q", [0])
        for text in texts:
            parts += text.encode(**ENCODING)
            ends.append(len(parts))
        self.buffer, self.ends = bytes(parts), np.array(ends, np.uint32 if len(parts) < 2**32 else np.uint64)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]
        return self.buffer[self.ends[index] : self.ends[index + 1]].decode(**ENCODING)

    def __iter__(self) -> Iterator[str]:
        return (self.buffer[start:end].decode(**ENCODING) for start, end in pairwise(self.ends))

    def __eq__(self, other) -> bool:
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))


class TextLists(Sequence):
    """A list of lists of texts."""

    def __init__(self, lists: Iterable[list[str]]):
        ends = array("Q", [0])

        def flatten() -> Iterator[str]:
            for texts in lists:
                yield from texts
                ends.append(ends[-1] + len(texts))

        self.texts = TextList(flatten())
        self.ends = np.array(ends, np.uint32)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> list[str]:
        index = range(len(self))[index]
        return [self.texts[number] for number in range(self.ends[index], self.ends[index + 1])]

    def __iter__(self) -> Iterator[list[str]]:
        texts = iter(self.texts)
        return (list(islice(texts, int(end - start))) for start, end in pairwise(self.ends))

    def __eq__(self, other) -> bool:
        return list(self) == list(other)

    def select(self, indices: Iterable[int]) -> "TextLists":
        return TextLists(self[index] for index in indices)


class PathList(Sequence):
    """Paths below a folder, by their names relative to it."""

    def __init__(self, root: Path, names: Iterable[str]):
        self.root, self.names = root, TextList(names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Path:
        return self.root / self.names[index]

    def select(self, indices: Iterable[int]) -> "PathList":
        return PathList(self.root, (self.names[index] for index in indices))


def share_equal(values: Iterable[Hashable]) -> list:
    """List the values, with one object for all equal ones."""
    shared: dict = {}
    return [shared.setdefault(value, value) for value in values]


def hash_all(values: Iterable[Hashable]) -> np.ndarray:
    return np.fromiter(map(hash, values), np.int64)


def group_equal(values: np.ndarray) -> list[list[int]]:
    """Positions of equal values, of those that occur more than once, in the order of the first ones."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, values[order[1:]] != values[order[:-1]], True])
    repeated = np.flatnonzero(np.diff(starts) > 1)
    return sorted(order[starts[place] : starts[place + 1]].tolist() for place in repeated)


class TextIndex:
    """Position of each text of a list, by its hash."""

    def __init__(self, texts: Sequence[str]):
        hashes = hash_all(texts)
        self.texts, self.order = texts, np.argsort(hashes, kind="stable")
        self.hashes = hashes[self.order]

    def find(self, text: str) -> int | None:
        key = hash(text)
        for place in range(np.searchsorted(self.hashes, key), len(self.hashes)):
            if self.hashes[place] != key:
                break
            if self.texts[position := int(self.order[place])] == text:
                return position
        return None
