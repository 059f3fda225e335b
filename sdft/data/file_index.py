"""What lies in each file: read and decoded once, then remembered by its size and time."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from sdft.runs.files import whole

PLACE = Path("outputs/cache/scans")


@dataclass
class Fact:
    """`digest`: SHA-256 of the file; `look`: 64 bits that near duplicates share; `fault`: why it cannot be read."""

    size: int
    time: int  # nanoseconds
    digest: str = ""
    width: int = 0  # upright, in pixels
    height: int = 0
    look: int = 0
    fault: str | None = None


def scan(files: list[Path], decode: Callable[[Path], Image.Image], root: Path) -> tuple[list[Fact], Callable[[], None]]:
    """One fact a file, and what remembers them. Only files that are new or changed since the last memory of `root` are opened."""
    memory = PLACE / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
    known = remembered(memory)

    def fact(file: Path) -> Fact:
        status = file.stat()
        old = known.get(str(file.relative_to(root)))
        if old and not old.fault and (old.size, old.time) == (status.st_size, status.st_mtime_ns):
            return old
        return look_into(file, Fact(status.st_size, status.st_mtime_ns), decode)

    facts = in_threads(fact, files)

    def remember() -> None:
        found = {str(file.relative_to(root)): fact for file, fact in zip(files, facts, strict=True)}
        if any(fact is not known.get(name) for name, fact in found.items()):
            with whole(memory) as place:
                place.write_text(json.dumps({name: asdict(fact) for name, fact in found.items()}), encoding="utf-8")

    return facts, remember


def remembered(memory: Path) -> dict[str, Fact]:
    """Nothing, where the file is damaged."""
    try:
        return {name: Fact(**fact) for name, fact in json.loads(memory.read_text(encoding="utf-8")).items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def look_into(file: Path, fact: Fact, decode: Callable[[Path], Image.Image]) -> Fact:
    try:
        image = decode(file)
        fact.digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except (ValueError, OSError) as error:
        fact.fault = str(error)
        return fact
    fact.width, fact.height, fact.look = *image.size, difference_hash(image)
    return fact


def difference_hash(image: Image.Image) -> int:
    """Where each of 8 x 8 places is brighter than the one to its right (Krawetz, 2013)."""
    small = image.convert("L").resize((9, 8), Image.Resampling.BILINEAR).tobytes()
    bits = (small[row * 9 + x] > small[row * 9 + x + 1] for row in range(8) for x in range(8))
    return sum(bit << place for place, bit in enumerate(bits))


def in_threads(task: Callable, items: list) -> list:
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(task, items, chunksize=16))
