"""Tables that list pictures and their captions: metadata.jsonl, .csv and .parquet."""

import csv
import io
import json
from pathlib import Path

from sdft.data.prompts import read_text

MAX_ERROR_CHARS = 100  # letters of what is wrong that an error repeats
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def find_metadata_table(folder: Path) -> Path | None:
    """The one table of a folder; `ValueError` when there are several."""
    found = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder}: {' and '.join(file.name for file in found)}; keep one of them")
    return found[0] if found else None


def read_metadata_table(file: Path, image_column: str, caption_column: str) -> list[tuple[int, str, list[str]]]:
    """Row number, picture and captions of every row; a caption may be a list."""
    rows = {".jsonl": read_jsonl_rows, ".csv": read_csv_rows, ".parquet": read_parquet_rows}[file.suffix](file)
    found = []
    for number, row in rows:
        if not isinstance(row, dict) or not {image_column, caption_column} <= row.keys():
            there = ", ".join(map(str, row))[:MAX_ERROR_CHARS] or "none" if isinstance(row, dict) else "no names"
            key = "caption" if isinstance(row, dict) and image_column in row else "image"
            raise ValueError(
                f"{file}:{number}: no {image_column} and {caption_column}; it has {there}; give data.{key}_column=NAME"
            )
        try:
            found.append((number, str(row[image_column]), parse_captions(row[caption_column])))
        except ValueError as error:
            raise ValueError(f"{file}:{number}: {caption_column} is {error}") from None
    return found


def parse_captions(value) -> list[str]:
    """One or several, without empty ones; `ValueError` for what is no text."""
    values = value if isinstance(value, list | tuple) else [value]
    return [text for text in (parse_text(v).strip() for v in values if v is not None) if text]


def parse_text(value) -> str:
    """Text as it is, and a whole number as text."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{str(value)[:MAX_ERROR_CHARS]}, which is not text; write one, or a list of them")
    text = str(value)
    if "\0" in text or any("\ud800" <= mark <= "\udfff" for mark in text):
        raise ValueError(
            f"{text[:MAX_ERROR_CHARS]!r}, with null bytes or halves of characters in it; save it as UTF-8 text"
        )
    return text


def read_jsonl_rows(file: Path):
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                raise ValueError(f"{file}:{number}: not a line of JSON") from None


def read_csv_rows(file: Path):
    """Commas, semicolons or tabs, whichever the first line has most of."""
    text = read_text(file)
    head = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    try:
        names = rows.fieldnames or []
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{file}:1: two columns are called {twice[0]!r}; rename one of them")
        yield from enumerate(rows, 2)
    except csv.Error as error:
        raise ValueError(f"{file}:{rows.reader.line_num}: not a line of CSV ({error})") from None


def read_parquet_rows(file: Path):
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ValueError(f"{file}: parquet needs a package that is not installed: pip install pyarrow") from None
    try:
        rows = pyarrow.parquet.ParquetFile(file).read().to_pylist()
    except Exception as error:  # of many kinds, by what is wrong with the file
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{file}: not a readable parquet file ({told[0][:MAX_ERROR_CHARS]})") from None
    return enumerate(rows, 1)
