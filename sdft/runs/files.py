"""Files that appear whole or not at all, and what is said in a file of JSON, and in the words of a run."""

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


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to, each writer's own, which takes the name of `path` once everything is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_json(file: Path) -> dict:
    """A file of JSON; empty where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError:
        raise ValueError(f"{file}: not a file of JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: not an object of JSON")
    return found


def read_config(run: Path) -> DictConfig:
    """`config.yaml` in the folder of a run: its words."""
    file = run / "config.yaml"
    try:
        found = OmegaConf.load(file)
    except FileNotFoundError:
        raise ValueError(f"{run}: not a run folder (no config.yaml)") from None
    except (YAMLError, OmegaConfBaseException, ValueError, OSError):
        found = None
    if not isinstance(found, DictConfig):
        raise ValueError(f"{file}: not the words of a run; it is cut off, or was changed")
    return found


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed process has not finished writing in a folder that is nobody else's."""
    for partial in folder.rglob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}", partial.name) and partial.is_file():
            partial.unlink()
