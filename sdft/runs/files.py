"""Atomic file writes, and readers of JSON and YAML files, whose content is checked and never executed or resolved."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from sdft.runs.terminal import print_text

MAX_TEXT_BYTES = 2**26  # of a JSON or YAML file

UINT64 = 2**64 - 1
MAX_NAME_BYTES = 200  # of a name in file names: systems allow 255, and the longest file name adds 36
MAX_PART_BYTES, MAX_PATH_BYTES = 255, 4096
MAX_INNER_BYTES = 400  # of the longest path below an output folder


def check_name(option: str, name: str) -> str:
    """Return `name`; `ValueError` if it is too long to be part of file names."""
    if (size := count_bytes(name)) > MAX_NAME_BYTES:
        raise ValueError(f"{option}={name[:40]}…: {size} bytes; choose a name of at most {MAX_NAME_BYTES} bytes")
    return name


def check_output_path(option: str, path: Path) -> Path:
    """Return `path`; `ValueError` if a file or a folder of that name could not be written."""
    if "\0" in str(path):
        raise ValueError(f"{option}={str(path)!r}: contains a null character; choose another name")
    check_name(option, path.name)
    if long := [part for part in path.parts if count_bytes(part) > MAX_PART_BYTES]:
        raise ValueError(
            f"{option}: the folder {long[0][:40]}… has more than {MAX_PART_BYTES} bytes; choose a shorter one"
        )
    if (size := count_bytes(str(path.absolute()))) > MAX_PATH_BYTES - MAX_INNER_BYTES:
        limit = MAX_PATH_BYTES - MAX_INNER_BYTES
        raise ValueError(f"{option}={str(path)[:40]}…: a path of {size} bytes; choose one of at most {limit} bytes")
    if (parent := next((p for p in path.absolute().parents if p.exists()), path.absolute())).is_file():
        raise ValueError(f"{option}={path}: {parent} is a file, not a folder; choose another path")
    return path


def count_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a unique temporary path beside `path`; rename it to `path` on success, delete it on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_cache_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that later runs can do without: if that fails, warn and continue."""
    try:
        with atomic_write(path) as partial:
            write(partial)
    except OSError as error:
        reason = error.strerror or error
        print_text(
            f"warning    {path.parent}: {reason}; later runs will compute this again", file=sys.stderr, flush=True
        )


def get_identity(file: Path) -> tuple[int, ...]:
    """Inode, size, and times of the last change of content and metadata in nanoseconds.

    The last one cannot be set by programs; a rename changes it, too. Only equality counts, so a wrong clock does no harm.
    """
    status = file.stat()
    return tuple(value & UINT64 for value in (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


def find_home() -> Path | None:
    """The home folder; None without one, as for a user id without an account in a container."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def is_local_path(name: str) -> bool:
    """Whether a text is a path on this machine: absolute, in the home folder, or existing."""
    return name.startswith("~") or Path(name).is_absolute() or (0 < len(name) < 250 and Path(name).exists())


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary path for a new folder, which replaces `folder` on success and is deleted on failure.

    The old folder is set aside before the new one takes its name, and deleted last: a kill in between leaves both.
    """
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read_json(file: Path, structure: Any = dict, limit: int = MAX_TEXT_BYTES) -> Any:
    """Read a JSON object, or another value of this `structure`, of at most `limit` bytes; empty if there is no file.

    Raises `ValueError` for invalid content.
    """
    if not file.is_file():
        return [] if isinstance(structure, list) else {}
    check_file_size(file, limit)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{file}: not valid JSON; the file is truncated or was edited") from None
    check_structure(content, structure, str(file))
    return content


class PlainLoader(yaml.SafeLoader):
    """A loader without aliases, with which a small file could hold billions of values."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)


def read_yaml(file: Path, structure: Any = dict) -> Any:
    """Read a YAML file of plain values: no tags or aliases, and interpolations stay text; `ValueError` for other content."""
    check_file_size(file, MAX_TEXT_BYTES)
    try:
        content = PlainLoader(file.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ValueError(f"{file}: not valid YAML; the file is truncated or was edited") from None
    check_structure(content, structure, str(file))
    return content


def check_file_size(file: Path, limit: int) -> None:
    if file.stat().st_size > limit:
        raise ValueError(f"{file}: larger than {limit} bytes")


def check_structure(value: Any, structure: Any, where: str) -> None:
    """`ValueError` unless `value` has the `structure`: a type, a tuple of types, `[structure]`, or a dict of required keys.

    In such a dict, `key?` may be missing, and `*` stands for all other keys. Booleans are no numbers.
    """
    if isinstance(structure, dict):
        check_structure(value, dict, where)
        known = {key.rstrip("?"): key for key in structure if key != "*"}
        if missing := [name for name, key in known.items() if key == name and name not in value]:
            raise ValueError(f"{where}: {missing[0]} is missing; the file is truncated or was edited")
        for key, child in value.items():
            check_structure(
                child, structure[known.get(key, "*")] if key in known or "*" in structure else object, where
            )
    elif isinstance(structure, list):
        check_structure(value, list, where)
        for child in value:
            check_structure(child, structure[0], where)
    else:
        types = structure if isinstance(structure, tuple) else (structure,)
        if not isinstance(value, types) or (isinstance(value, bool) and not {bool, object} & set(types)):
            accepted = " or ".join(kind.__name__ for kind in types)
            raise ValueError(f"{where}: {str(value)[:40]!r} stands where {accepted} is expected; the file was edited")


def check_format_version(found: Any, accepted: int, where: Path) -> None:
    """`ValueError` unless a file has the format version that this program reads."""
    if found != accepted or isinstance(found, bool):
        version = f"format version {str(found)[:20]}" if found is not None else "no format version"
        raise ValueError(f"{where}: has {version}; this version of sdft reads format version {accepted} only")


def remove_partial_files(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder; no other process may be writing to it."""
    for partial in folder.rglob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}\.partial", partial.name) and partial.is_file():
            partial.unlink()
