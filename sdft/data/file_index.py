"""File index: digest, size and perceptual hash of each image file, cached while inode, size and times of the file stay equal."""

import hashlib
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.lib.recfunctions import repack_fields
from PIL import Image

from sdft.data.compact_lists import PathList, TextIndex, TextList, share_equal
from sdft.data.folder_listing import MASK_SUFFIX
from sdft.distributed import count_cpu_cores
from sdft.runs.files import get_identity, write_cache_file
from sdft.runs.lock import wait_for_lock

SCAN_CACHE_DIR = Path("outputs/cache/scans")
BLOCK_SIZE = 1024  # files that are scheduled at once
SAVE_INTERVAL = 20  # seconds between saves of an unfinished scan
ROW_TYPE = np.dtype(
    [
        ("identity", "u8", 4),
        ("digest", "u1", 32),
        ("width", "i4"),
        ("height", "i4"),
        ("dhash", "u8"),
        ("notes", "u1"),
        ("ok", "?"),
    ]
)


@dataclass(slots=True)
class FileRecord:
    """`identity`: inode, size, and times of content and metadata, during a scan; `digest`: SHA-256; `error`: why unreadable."""

    identity: tuple[int, ...]
    digest: str = ""
    width: int = 0  # upright, in pixels
    height: int = 0
    dhash: int = 0  # 64-bit perceptual hash
    error: str | None = None
    notes: int = 0  # `ImageNotes`


class RecordTable:
    """Records of many files in one array, 50 to 82 bytes each; errors are stored apart, and names if the table has them."""

    def __init__(self, rows: np.ndarray, names: TextList | None = None):
        self.rows, self.names, self.errors = rows, names or TextList([]), {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> FileRecord:
        row = self.rows[index]
        identity = tuple(row["identity"].tolist()) if "identity" in row.dtype.names else ()
        digest = row["digest"].tobytes().hex()
        return FileRecord(
            identity,
            digest,
            int(row["width"]),
            int(row["height"]),
            int(row["dhash"]),
            self.errors.get(index),
            int(row["notes"]),
        )

    def get_digest(self, index: int) -> str:
        return self.rows["digest"][index].tobytes().hex()

    def sizes(self) -> list[tuple[int, int]]:
        return share_equal(zip(self.rows["width"].tolist(), self.rows["height"].tolist(), strict=True))

    def drop_identities(self) -> None:
        """Forget inodes and times, which only a scan compares."""
        self.rows = repack_fields(self.rows[[name for name in ROW_TYPE.names if name != "identity"]])

    def __setitem__(self, index: int, record: FileRecord) -> None:
        digest = np.frombuffer(bytes.fromhex(record.digest or "00" * 32), np.uint8)
        self.rows[index] = (
            record.identity, digest, record.width, record.height, record.dhash, record.notes, not record.error
        )  # fmt: skip
        if record.error:
            self.errors[index] = record.error

    def select(self, indices: Sequence[int]) -> "RecordTable":
        names = TextList(self.names[index] for index in indices) if len(self.names) else None
        return RecordTable(self.rows[np.array(indices, np.int64)], names)


def scan_files(files: PathList, decode: Callable[[Path], Image.Image], verify: bool = False) -> RecordTable:
    """Return one record per file. Decodes only new content, and hashes only files with a new identity, or all to `verify`.

    Readable files are remembered, also by a scan that is interrupted.
    """
    records = RecordTable(np.zeros(len(files), ROW_TYPE))
    file = SCAN_CACHE_DIR / f"{hashlib.sha256(os.fsencode(files.root.resolve())).hexdigest()[:16]}.npz"
    with wait_for_lock(file.with_suffix(".lock")):  # a process of the same run or folder then finds the records
        scan_blocks(files, records, ScanCache(file), decode, verify)
    return records


def scan_blocks(files: PathList, records: RecordTable, cache: "ScanCache", decode, verify) -> None:
    def scan_file(index: int) -> None:
        file = files[index]
        records[index] = cache.find_by_content(file) or inspect_file(file, decode)

    saved = time.monotonic()
    for start in range(0, len(files), BLOCK_SIZE):
        block = range(start, min(start + BLOCK_SIZE, len(files)))
        map_in_threads(scan_file, [index for index in block if verify or not cache.restore(files, index, records)])
        if time.monotonic() - saved > SAVE_INTERVAL:
            cache.save(files.names, records)
            saved = time.monotonic()
    cache.save(files.names, records)


class ScanCache:
    """Records of the last scan of a folder, by relative name and by content."""

    def __init__(self, file: Path):
        self.file = file
        self.names, self.records = read_scan_cache(self.file)
        self.by_name = TextIndex(self.names)

    @cached_property
    def by_content(self) -> dict[tuple[bytes, bool], int]:
        digests = self.records.rows["digest"]
        return {(digests[index].tobytes(), is_mask(name)): index for index, name in enumerate(self.names)}

    def restore(self, files: PathList, index: int, records: RecordTable) -> bool:
        """Copy the record of a file, if the file has not changed."""
        if (known := self.by_name.find(files.names[index])) is None:
            return False
        try:
            identity = get_identity(files[index])
        except OSError:
            return False  # `inspect_file` names the error
        if tuple(self.records.rows["identity"][known].tolist()) != identity:
            return False
        records.rows[index] = self.records.rows[known]
        return True

    def find_by_content(self, file: Path) -> FileRecord | None:
        """The record of any file with the same content; None if there is none."""
        if not self.by_content:
            return None
        try:
            identity, digest = get_identity(file), hashlib.sha256(file.read_bytes()).digest()
        except OSError:
            return None
        index = self.by_content.get((digest, is_mask(file.name)))
        if index is None or get_identity(file) != identity:
            return None
        record = self.records[index]
        record.identity = identity
        return record

    def save(self, names: Sequence[str], records: RecordTable) -> None:
        """Write the records of all readable files, if any has changed."""
        rows, is_readable = records.rows, records.rows["ok"]
        if not is_readable.all():
            rows, names = rows[is_readable], TextList(names[index] for index in np.flatnonzero(is_readable))
        if names == self.names and np.array_equal(rows, self.records.rows):
            return
        text = np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8)

        def write(path: Path) -> None:
            with open(path, "wb") as file:
                np.savez(file, rows=rows, names=text)

        write_cache_file(self.file, write)


def read_scan_cache(file: Path) -> tuple[TextList, RecordTable]:
    """Names and records; empty if the file is missing or damaged (zip stores a checksum)."""
    try:
        with np.load(file, allow_pickle=False) as content:
            rows, text = content["rows"], content["names"]
        names = TextList(split_names(text.tobytes()))
        if rows.dtype == ROW_TYPE and rows.shape == (len(names),):
            return names, RecordTable(rows)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return TextList([]), RecordTable(np.zeros(0, ROW_TYPE))


def split_names(content: bytes) -> Iterator[str]:
    start = 0
    while start < len(content):
        end = content.find(b"\0", start) % (len(content) + 1)
        yield content[start:end].decode("utf-8", "surrogateescape")
        start = end + 1


def inspect_file(file: Path, decode: Callable[[Path], Image.Image]) -> FileRecord:
    record = FileRecord((0, 0, 0, 0))
    try:
        record.identity, image = get_identity(file), decode(file)
        record.digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if get_identity(file) != record.identity:
            raise ValueError(f"{file}: changed while it was read; start again")
    except (ValueError, OSError) as error:
        record.error = str(error)
        return record
    record.width, record.height, record.dhash = *image.size, compute_dhash(image)
    record.notes = image.info.get("notes", 0)
    return record


def check_digest(file: Path, digest: str) -> None:
    """`ValueError` if the content of a file is not the one that was checked."""
    if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
        raise ValueError(f"{file}: its content is not the one that was checked; start again with data.verify=full")


def is_mask(name: str) -> bool:
    return name.lower().endswith(MASK_SUFFIX)


def compute_dhash(image: Image.Image) -> int:
    """Difference hash: each of 8 x 8 bits is set where a pixel is brighter than its right neighbour (Krawetz, 2013)."""
    small = image.convert("L").resize((9, 8), Image.Resampling.BILINEAR).tobytes()
    bits = (small[row * 9 + x] > small[row * 9 + x + 1] for row in range(8) for x in range(8))
    return sum(bit << position for position, bit in enumerate(bits))


def map_in_threads(task: Callable, items: Sequence) -> list:
    results = []
    with ThreadPoolExecutor(count_cpu_cores()) as threads:
        for start in range(0, len(items), BLOCK_SIZE):  # a scheduled item takes a kilobyte
            results += threads.map(task, items[start : start + BLOCK_SIZE])
    return results
