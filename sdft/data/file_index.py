"""What lies in each file: read and decoded once, then remembered by its size and time."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from sdft.runs.files import atomic_write

SCAN_CACHE_DIR = Path("outputs/cache/scans")


@dataclass
class FileRecord:
    """`digest`: SHA-256 of the file; `look`: 64 bits that near duplicates share; `error`: why it cannot be read."""

    size: int
    time: int  # nanoseconds
    digest: str = ""
    width: int = 0  # upright, in pixels
    height: int = 0
    dhash: int = 0
    error: str | None = None


def scan_files(
    files: list[Path], decode: Callable[[Path], Image.Image], root: Path
) -> tuple[list[FileRecord], Callable[[], None]]:
    """One fact a file, and what remembers them. Only files that are new or changed since the last memory of `root` are opened."""
    memory = SCAN_CACHE_DIR / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
    known = read_scan_cache(memory)

    def fact(file: Path) -> FileRecord:
        status = file.stat()
        old = known.get(str(file.relative_to(root)))
        if old and not old.error and (old.size, old.time) == (status.st_size, status.st_mtime_ns):
            return old
        return inspect_file(file, FileRecord(status.st_size, status.st_mtime_ns), decode)

    facts = map_in_threads(fact, files)

    def remember() -> None:
        found = {str(file.relative_to(root)): fact for file, fact in zip(files, facts, strict=True)}
        if any(fact is not known.get(name) for name, fact in found.items()):
            with atomic_write(memory) as place:
                place.write_text(json.dumps({name: asdict(fact) for name, fact in found.items()}), encoding="utf-8")

    return facts, remember


def read_scan_cache(memory: Path) -> dict[str, FileRecord]:
    """Nothing, where the file is damaged."""
    try:
        return {name: FileRecord(**fact) for name, fact in json.loads(memory.read_text(encoding="utf-8")).items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def inspect_file(file: Path, fact: FileRecord, decode: Callable[[Path], Image.Image]) -> FileRecord:
    try:
        image = decode(file)
        fact.digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except (ValueError, OSError) as error:
        fact.error = str(error)
        return fact
    fact.width, fact.height, fact.dhash = *image.size, compute_dhash(image)
    return fact


def compute_dhash(image: Image.Image) -> int:
    """Where each of 8 x 8 places is brighter than the one to its right (Krawetz, 2013)."""
    small = image.convert("L").resize((9, 8), Image.Resampling.BILINEAR).tobytes()
    bits = (small[row * 9 + x] > small[row * 9 + x + 1] for row in range(8) for x in range(8))
    return sum(bit << place for place, bit in enumerate(bits))


def map_in_threads(task: Callable, items: list) -> list:
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(task, items, chunksize=16))
