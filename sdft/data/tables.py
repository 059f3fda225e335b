"""Tables that list pictures and their captions: metadata.jsonl, .csv and .parquet."""

import csv
import io
import json
from pathlib import Path

from sdft.prompts import read_text

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def table(folder: Path) -> Path | None:
    """The one table of a folder; `ValueError` when there are several."""
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder}: {' and '.join(file.name for file in found)}; keep one of them")
    return found[0] if found else None


def read(file: Path, image_column: str, caption_column: str) -> list[tuple[int, str, list[str]]]:
    """Row number, picture and captions of every row; a caption may be a list."""
    rows = {".jsonl": jsonl, ".csv": comma_separated, ".parquet": parquet}[file.suffix](file)
    found = []
    for number, row in rows:
        if not isinstance(row, dict) or not {image_column, caption_column} <= row.keys():
            there = ", ".join(map(str, row)) if isinstance(row, dict) else "no names"
            key = "caption" if isinstance(row, dict) and image_column in row else "image"
            raise ValueError(
                f"{file}:{number}: no {image_column} and {caption_column}; it has {there}; give data.{key}_column=NAME"
            )
        found.append((number, str(row[image_column]), captions(row[caption_column])))
    return found


def captions(value) -> list[str]:
    """One or several, without empty ones."""
    values = value if isinstance(value, list | tuple) else [value]
    return [text for text in (str(v).strip() for v in values if v is not None) if text]


def jsonl(file: Path):
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError:
                raise ValueError(f"{file}:{number}: not a line of JSON") from None


def comma_separated(file: Path):
    """Commas, semicolons or tabs, whichever the first line has most of."""
    text = read_text(file)
    head = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    return enumerate(rows, 2)


def parquet(file: Path):
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ValueError(f"{file}: parquet needs a package that is not installed: pip install pyarrow") from None
    return enumerate(pyarrow.parquet.read_table(file).to_pylist(), 1)
