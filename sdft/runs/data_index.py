"""Index of a run's images and captions, in `images.csv`, to show what has changed when the run is resumed or reproduced."""

import csv
import hashlib
import io
from pathlib import Path

from sdft.runs.files import atomic_write
from sdft.runs.metadata import read_record

INDEX_FILE = "images.csv"
COLUMNS = ("image", "content", "captions")
MAX_EXAMPLES = 3
DIGEST_LENGTH = 16


def build_data_index(sources: dict[str, object]) -> bytes:
    """CSV of the name and the digests of content and captions of each image; `sources` by the prefix of their names."""
    content = io.BytesIO()
    text = io.TextIOWrapper(content, "utf-8", "surrogateescape", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for prefix, source in sources.items():
        source.sizes()  # inspects all images, in threads
        for index, (name, captions) in enumerate(zip(source.image_names(), source.all_captions(), strict=True)):
            digests = (source.digest(index), repr(captions))
            writer.writerow([prefix + name, *(shorten_digest(digest) for digest in digests)])
    return content.getvalue()


def shorten_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:DIGEST_LENGTH]


def write_data_index(folder: Path, index: bytes) -> None:
    with atomic_write(folder / INDEX_FILE) as file:
        file.write_bytes(index)


def describe_input_changes(folder: Path, index: bytes, digests: dict[str, str]) -> str | None:
    """What differs between the inputs of the run in `folder` and these; None if they are equal."""
    recorded, file = read_record(folder).get("digests", {}), folder / INDEX_FILE
    changes = []
    if recorded.get("model") != digests["model"]:
        changes.append("other base weights")
    before = file.read_bytes() if file.is_file() else None
    if before is None and recorded.get("data") != digests["data"]:
        changes.append(f"other images or captions ({INDEX_FILE} is missing, so which is unknown)")
    elif before is not None and before != index:
        changes.append(describe_difference(before, index))
    return "; ".join(changes) or None


def describe_difference(before: bytes, after: bytes) -> str:
    """Such as "1 removed (0.png), 2 added (4.png, 5.png), 1 with other captions (1.png)"."""
    old, new = parse_index(before), parse_index(after)
    common = [name for name in old if name in new]
    kinds = {
        "removed": [name for name in old if name not in new],
        "added": [name for name in new if name not in old],
        "changed": [name for name in common if old[name][0] != new[name][0]],
        "with other captions": [name for name in common if old[name][1] != new[name][1]],
    }
    parts = [f"{len(names)} {kind} ({format_examples(names)})" for kind, names in kinds.items() if names]
    return "images: " + (", ".join(parts) or "another order")


def parse_index(content: bytes) -> dict[str, tuple[str, ...]]:
    """Digests by name; damaged lines are left out."""
    rows = csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape")), strict=False)
    return {name: (content, captions) for name, content, captions in (row for row in rows if len(row) == 3)}


def format_examples(names: list[str]) -> str:
    more = f" and {len(names) - MAX_EXAMPLES} more" if len(names) > MAX_EXAMPLES else ""
    return ", ".join(names[:MAX_EXAMPLES]) + more
