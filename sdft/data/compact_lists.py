"""Lists of texts and of paths for very many images: one buffer instead of one object per entry."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}


class TextLists(Sequence):
    """A list of lists of texts, in one UTF-8 buffer."""

    def __init__(self, lists: Iterable[list[str]]):
        parts, ends, last = bytearray(), [0], [0]
        for texts in lists:
            for text in texts:
                parts += text.encode(**ENCODING)
                ends.append(len(parts))
            last.append(len(ends) - 1)
        self.buffer, self.ends, self.last = bytes(parts), np.array(ends), np.array(last, np.uint32)
        if self.ends[-1] < 2**32:
            self.ends = self.ends.astype(np.uint32)

    def __len__(self) -> int:
        return len(self.last) - 1

    def __getitem__(self, index: int) -> list[str]:
        index = range(len(self))[index]
        ends = self.ends[self.last[index] : self.last[index + 1] + 1].tolist()
        return [self.buffer[a:b].decode(**ENCODING) for a, b in pairwise(ends)]

    def __eq__(self, other) -> bool:
        return list(self) == list(other)


class PathList(Sequence):
    """Paths below a folder."""

    def __init__(self, root: Path, paths: Iterable[Path]):
        self.root, self.names = root, TextLists([str(path.relative_to(root))] for path in paths)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Path:
        return self.root / self.names[index][0]
