"""Content index: size and digest of encoded images by the SHA-256 of their bytes, so that later runs need not decode them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cached_property

from sdft.data.file_index import SCAN_CACHE_DIR
from sdft.runs.files import atomic_write


@dataclass
class ContentRecord:
    """Upright size in pixels, and a hash of the content."""

    width: int
    height: int
    digest: str


class ContentIndex:
    """One JSON file per dataset, which `name` identifies."""

    def __init__(self, name: str):
        self.file = SCAN_CACHE_DIR / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
        self.is_changed = False

    @cached_property
    def records(self) -> dict[str, ContentRecord]:
        """Empty if the file is missing or damaged."""
        try:
            rows = json.loads(self.file.read_text(encoding="utf-8"))
            return {
                key: ContentRecord(int(width), int(height), str(text)) for key, (width, height, text) in rows.items()
            }
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return {}

    def look_up(self, encoded: bytes, inspect: Callable[[str], ContentRecord]) -> ContentRecord:
        """The record of an encoded image; `inspect` computes a missing one, given the SHA-256 of the bytes."""
        key = hashlib.sha256(encoded).hexdigest()
        if key not in self.records:
            self.records[key], self.is_changed = inspect(key), True
        return self.records[key]

    def save(self) -> None:
        if self.is_changed:
            with atomic_write(self.file) as path:
                path.write_text(
                    json.dumps({k: astuple(record) for k, record in self.records.items()}), encoding="utf-8"
                )
            self.is_changed = False
