"""Atomic file writes, and readers of a run's JSON and config files."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

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
    if (parent := next(parent for parent in path.absolute().parents if parent.exists())).is_file():
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


def read_json(file: Path) -> dict:
    """Read a JSON object; empty if the file does not exist. Raises `ValueError` for invalid content."""
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError:
        raise ValueError(f"{file}: not valid JSON") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: not a JSON object")
    return content


def read_config(run: Path) -> DictConfig:
    """Read `config.yaml` of a run folder."""
    file = run / "config.yaml"
    try:
        config = OmegaConf.load(file)
    except FileNotFoundError:
        raise ValueError(f"{run}: not a run folder (no config.yaml)") from None
    except (YAMLError, OmegaConfBaseException, ValueError, OSError):
        config = None
    if not isinstance(config, DictConfig):
        raise ValueError(f"{file}: not a run config; the file is truncated or was edited")
    return config


def remove_partial_files(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder; no other process may be writing to it."""
    for partial in folder.rglob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}\.partial", partial.name) and partial.is_file():
            partial.unlink()
