"""Tables of images and captions: metadata.jsonl, .csv and .parquet."""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from sdft.data.prompts import MAX_CAPTION_CHARS, read_lines

MAX_ERROR_CHARS = 100  # length of a quotation in an error message
MAX_TABLE_ROWS = 10_000_000
MAX_TABLE_CHARS = 2**29  # of all names and captions
MAX_BATCH_BYTES, BATCH_ROWS = 2**28, 256  # of a parquet file
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def read_metadata_table(
    file: Path, image_column: str, caption_column: str, errors: list[str]
) -> Iterator[tuple[int, str, list[str]]]:
    """Yield row number, image name and captions of every row; a caption cell may be a list. Extends `errors` at the end."""
    rows_by_error, chars, last = defaultdict(list), 0, []
    try:
        for number, row in {".jsonl": read_jsonl_rows, ".csv": read_csv_rows, ".parquet": read_parquet_rows}[
            file.suffix
        ](file):
            check_table_size(file, number, chars)
            try:
                name, captions = parse_row(row, image_column, caption_column)
                chars += len(name) + sum(map(len, captions))
            except ValueError as error:
                rows_by_error[str(error)].append(number)
            else:
                yield number, name, captions
    except (ValueError, OSError) as error:  # the rest of the file cannot be read
        last = [str(error)]
    errors += [*format_row_errors(file, rows_by_error), *last]


def check_table_size(file: Path, rows: int, chars: int = 0) -> None:
    if rows > MAX_TABLE_ROWS or chars > MAX_TABLE_CHARS:
        limits = f"{MAX_TABLE_ROWS} rows with {MAX_TABLE_CHARS} characters"
        raise ValueError(f"{file}: more than {limits}; at most that is read; split the data")


def format_row_errors(file: Path, errors: dict[str, list[int]]) -> list[str]:
    """One line for each error, naming its first row."""
    more = {text: f" (and {len(rows) - 1} more rows)" if len(rows) > 1 else "" for text, rows in errors.items()}
    return [f"{file}:{rows[0]}: {text}{more[text]}" for text, rows in errors.items()]


def parse_row(row, image_column: str, caption_column: str) -> tuple[str, list[str]]:
    """Return image name and captions of a row; raises `ValueError` if they cannot be read."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict) or not {image_column, caption_column} <= row.keys():
        columns = ", ".join(map(str, row))[:MAX_ERROR_CHARS] or "none" if isinstance(row, dict) else "no columns"
        key = "caption" if isinstance(row, dict) and image_column in row else "image"
        raise ValueError(f"no {image_column} and {caption_column}; it has {columns}; give data.{key}_column=NAME")
    try:
        return str(row[image_column]), parse_captions(row[caption_column])
    except ValueError as error:
        raise ValueError(f"{caption_column} is {error}") from None


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
    if len(text) > MAX_CAPTION_CHARS:
        raise ValueError(f"{text[:MAX_ERROR_CHARS]!r}…, which has more than {MAX_CAPTION_CHARS} characters; shorten it")
    return text


def read_jsonl_rows(file: Path) -> Iterator[tuple[int, object]]:
    """Yield line numbers and rows; a `ValueError` in place of a row that cannot be read."""
    for number, line in enumerate(read_lines(file), 1):
        if line.strip():
            try:
                yield number, json.loads(line, object_pairs_hook=build_row)
            except LookupError as error:
                yield number, ValueError(error.args[0])
            except (ValueError, RecursionError):
                yield number, ValueError("not a line of JSON")


def build_row(pairs: list[tuple[str, object]]) -> dict:
    check_column_names([name for name, _ in pairs])
    return dict(pairs)


def check_column_names(names: list[str]) -> None:
    """`LookupError` for two equal names; not a `ValueError`, which is how a parser reports its own errors."""
    if len(set(names)) < len(names):
        duplicate = min(name for name, count in Counter(names).items() if count > 1)
        raise LookupError(f"two columns are called {duplicate[:MAX_ERROR_CHARS]!r}; rename one of them")


def read_csv_rows(file: Path) -> Iterator[tuple[int, object]]:
    """Delimited by comma, semicolon or tab, whichever is most frequent in the header. Yields like `read_jsonl_rows`."""
    lines = read_lines(file)
    header = next(lines, "")
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
    try:
        names = next((fields for fields in reader if fields), [])
        check_column_names(names)
        line = reader.line_num
        for fields in reader:
            line, number = reader.line_num, line + 1
            if fields and len(fields) != len(names):
                quoted = f'; quote a text that has a "{delimiter}"' if len(fields) > len(names) else ""
                yield number, ValueError(f"{len(fields)} fields, but the header has {len(names)}{quoted}")
            elif fields:
                yield number, dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{file}:{reader.line_num}: not a line of CSV ({error})") from None
    except LookupError as error:
        raise ValueError(f"{file}:{reader.line_num}: {error.args[0]}") from None


def read_parquet_rows(file: Path) -> Iterator[tuple[int, dict]]:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ValueError(f"{file}: parquet needs a package that is not installed: pip install pyarrow") from None
    try:
        table, number = pyarrow.parquet.ParquetFile(file), 0
        check_column_names(table.schema_arrow.names)
        num_rows, batches = table.metadata.num_rows, table.iter_batches(BATCH_ROWS)
    except Exception as error:  # pyarrow raises many types
        raise describe_parquet_error(file, error) from None
    check_table_size(file, num_rows)
    while True:
        try:
            if (batch := next(batches, None)) is None:
                return
            if batch.nbytes > MAX_BATCH_BYTES:
                raise ValueError(f"{BATCH_ROWS} rows have more than {MAX_BATCH_BYTES} bytes")
            rows = batch.to_pylist()
        except Exception as error:
            raise describe_parquet_error(file, error) from None
        for row in rows:
            number += 1
            yield number, row


def describe_parquet_error(file: Path, error: Exception) -> ValueError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(f"{file}: not a readable parquet file ({lines[0][:MAX_ERROR_CHARS]})")
