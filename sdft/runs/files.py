"""Atomic file writes, and readers of a run's JSON and config files."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

UINT64 = 2**64 - 1


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a unique temporary path beside `path`; rename it to `path` on success, delete it on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
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
        if re.fullmatch(r"\..+\.[0-9a-f]{8}", partial.name) and partial.is_file():
            partial.unlink()
