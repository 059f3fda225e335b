"""File index: digest, size and perceptual hash of each image file, cached by file size and modification time."""

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
    """`digest`: SHA-256 of the file; `dhash`: 64-bit perceptual hash; `error`: why the file is unreadable."""

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
    """Return one record per file, and a function that saves them. Opens only files that changed since the last saved scan."""
    cache_file = SCAN_CACHE_DIR / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
    cached = read_scan_cache(cache_file)

    def load_record(file: Path) -> FileRecord:
        status = file.stat()
        record = cached.get(str(file.relative_to(root)))
        if record and not record.error and (record.size, record.time) == (status.st_size, status.st_mtime_ns):
            return record
        return inspect_file(file, FileRecord(status.st_size, status.st_mtime_ns), decode)

    records = map_in_threads(load_record, files)

    def save_records() -> None:
        by_name = {str(file.relative_to(root)): record for file, record in zip(files, records, strict=True)}
        if any(record is not cached.get(name) for name, record in by_name.items()):
            with atomic_write(cache_file) as path:
                path.write_text(
                    json.dumps({name: asdict(record) for name, record in by_name.items()}), encoding="utf-8"
                )

    return records, save_records


def read_scan_cache(cache_file: Path) -> dict[str, FileRecord]:
    """Return {} if the file is missing or damaged."""
    try:
        records = json.loads(cache_file.read_text(encoding="utf-8"))
        return {name: FileRecord(**record) for name, record in records.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def inspect_file(file: Path, record: FileRecord, decode: Callable[[Path], Image.Image]) -> FileRecord:
    try:
        image = decode(file)
        record.digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except (ValueError, OSError) as error:
        record.error = str(error)
        return record
    record.width, record.height, record.dhash = *image.size, compute_dhash(image)
    return record


def compute_dhash(image: Image.Image) -> int:
    """Difference hash: each of 8 x 8 bits is set where a pixel is brighter than its right neighbour (Krawetz, 2013)."""
    small = image.convert("L").resize((9, 8), Image.Resampling.BILINEAR).tobytes()
    bits = (small[row * 9 + x] > small[row * 9 + x + 1] for row in range(8) for x in range(8))
    return sum(bit << position for position, bit in enumerate(bits))


def map_in_threads(task: Callable, items: list) -> list:
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(task, items, chunksize=16))
