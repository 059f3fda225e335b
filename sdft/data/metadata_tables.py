"""Tables of images and captions: metadata.jsonl, .csv and .parquet."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from sdft.data.prompts import read_text

MAX_ERROR_CHARS = 100  # length of a quotation in an error message
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def find_metadata_table(folder: Path) -> Path | None:
    """Return the only table of a folder; raises `ValueError` if there are several."""
    tables = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(tables) > 1:
        raise ValueError(f"{folder}: {' and '.join(file.name for file in tables)}; keep one of them")
    return tables[0] if tables else None


def read_metadata_table(file: Path, image_column: str, caption_column: str) -> list[tuple[int, str, list[str]]]:
    """Return row number, image name and captions of every row; a caption cell may be a list."""
    rows = {".jsonl": read_jsonl_rows, ".csv": read_csv_rows, ".parquet": read_parquet_rows}[file.suffix](file)
    entries = []
    for number, row in rows:
        if not isinstance(row, dict) or not {image_column, caption_column} <= row.keys():
            columns = ", ".join(map(str, row))[:MAX_ERROR_CHARS] or "none" if isinstance(row, dict) else "no columns"
            key = "caption" if isinstance(row, dict) and image_column in row else "image"
            raise ValueError(
                f"{file}:{number}: no {image_column} and {caption_column}; it has {columns}; give data.{key}_column=NAME"
            )
        try:
            entries.append((number, str(row[image_column]), parse_captions(row[caption_column])))
        except ValueError as error:
            raise ValueError(f"{file}:{number}: {caption_column} is {error}") from None
    return entries


def parse_captions(value) -> list[str]:
    """Return one or several captions, without empty ones; raises `ValueError` if a value is not text."""
    values = value if isinstance(value, list | tuple) else [value]
    return [text for text in (parse_text(v).strip() for v in values if v is not None) if text]


def parse_text(value) -> str:
    """Return text unchanged, and an integer as text."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{str(value)[:MAX_ERROR_CHARS]}, which is not text; write text or a list of texts")
    text = str(value)
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError(f"{text[:MAX_ERROR_CHARS]!r}, which has null bytes or lone surrogates; save it as UTF-8 text")
    return text


def read_jsonl_rows(file: Path) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                raise ValueError(f"{file}:{number}: not a line of JSON") from None


def read_csv_rows(file: Path) -> Iterator[tuple[int, dict]]:
    """Delimited by comma, semicolon or tab, whichever is most frequent in the header."""
    text = read_text(file)
    header = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    try:
        names = rows.fieldnames or []
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{file}:1: two columns are called {duplicates[0]!r}; rename one of them")
        yield from enumerate(rows, 2)
    except csv.Error as error:
        raise ValueError(f"{file}:{rows.reader.line_num}: not a line of CSV ({error})") from None


def read_parquet_rows(file: Path) -> Iterator[tuple[int, dict]]:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ValueError(f"{file}: parquet needs a package that is not installed: pip install pyarrow") from None
    try:
        rows = pyarrow.parquet.ParquetFile(file).read().to_pylist()
    except Exception as error:  # pyarrow raises many types
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{file}: not a readable parquet file ({lines[0][:MAX_ERROR_CHARS]})") from None
    return enumerate(rows, 1)
