"""Content index: size and digest of encoded images by the SHA-256 of their bytes, so that later runs need not decode them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np

from sdft.data.compact_lists import TextList
from sdft.data.file_index import SCAN_CACHE_DIR
from sdft.runs.files import write_cache_file


@dataclass(slots=True)
class ContentRecord:
    """Upright size in pixels, and a hash of the content."""

    width: int
    height: int
    digest: str


class ContentTable(Mapping):
    """Records of all images of a dataset, by index, in arrays."""

    def __init__(self, records: Sequence[ContentRecord]):
        self.sizes = np.array([(record.width, record.height) for record in records], np.int32).reshape(-1, 2)
        self.digests = TextList(record.digest for record in records)

    def __len__(self) -> int:
        return len(self.digests)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __getitem__(self, index: int) -> ContentRecord:
        return ContentRecord(*self.sizes[index].tolist(), self.digests[index])


class ContentIndex:
    """One file per dataset, which `name` identifies: a checksum, and JSON."""

    def __init__(self, name: str):
        self.file = SCAN_CACHE_DIR / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
        self.is_changed = False

    @cached_property
    def records(self) -> dict[str, ContentRecord]:
        """Empty if the file is missing or damaged."""
        try:
            checksum, _, text = self.file.read_text(encoding="utf-8").partition("\n")
            rows = json.loads(text if checksum == hashlib.sha256(text.encode()).hexdigest() else "{}")
            return {
                key: ContentRecord(int(width), int(height), str(text)) for key, (width, height, text) in rows.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def look_up(self, encoded: bytes, inspect: Callable[[str], ContentRecord]) -> ContentRecord:
        """The record of an encoded image; `inspect` computes a missing one, given the SHA-256 of the bytes."""
        key = hashlib.sha256(encoded).hexdigest()
        if key not in self.records:
            self.records[key], self.is_changed = inspect(key), True
        return self.records[key]

    def save(self) -> None:
        if self.is_changed:
            text = json.dumps({key: astuple(record) for key, record in self.records.items()})
            content = f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}"
            write_cache_file(self.file, lambda path: path.write_text(content, encoding="utf-8"))
            self.is_changed = False
