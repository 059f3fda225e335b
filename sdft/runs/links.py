"""Files below a folder, never outside of it through symbolic links."""

import os
from pathlib import Path
from typing import Any

from sdft.runs.files import read_json

MAX_FILE_BYTES = 16 * 2**20


def check_links(folder: Path) -> None:
    """`ValueError` if a link in a run folder leads out of it: other files would be read, shown, replaced or removed.

    Inside `wandb/`, which only W&B reads, it keeps links to its own logs.
    """
    root = folder.resolve()
    for parent, folders, files in os.walk(root):
        folders[:] = folders if parent != str(root / "wandb") else []
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise ValueError(
                    f"{folder}: {path.relative_to(root)} is a link out of the folder; replace it by the file"
                )


def is_visible_name(name: str) -> bool:
    """Whether a folder or file name may be listed and opened."""
    return bool(name) and not name.startswith(".") and not set(name) & {"/", "\\", "\0"}


def resolve_safe_path(folder: Path, *parts: str) -> Path:
    """Resolved path of a regular file below `folder`; `FileNotFoundError` otherwise."""
    try:
        root = folder.resolve(strict=True)
        file = root.joinpath(*parts).resolve(strict=True)
        if (
            all(map(is_visible_name, parts))
            and file.is_file()
            and all(map(is_visible_name, file.relative_to(root).parts))
        ):
            return file
    except (OSError, ValueError, RuntimeError):  # missing; outside or invalid name; symlink loop
        pass
    raise FileNotFoundError("/".join(parts).encode("utf-8", "replace").decode())


def read_safe_bytes(folder: Path, *parts: str, limit: int = MAX_FILE_BYTES) -> bytes:
    """Content of a file; `OSError` if it is larger than `limit`."""
    file = resolve_safe_path(folder, *parts)
    if file.stat().st_size > limit:
        raise OSError("too large")
    return file.read_bytes()


def read_safe_json(folder: Path, *parts: str, structure: Any = dict) -> Any:
    """Content of a JSON file; an empty one if it is missing, unreadable, or has another structure."""
    try:
        return read_json(resolve_safe_path(folder, *parts), structure, MAX_FILE_BYTES)
    except (OSError, ValueError):
        return [] if isinstance(structure, list) else {}
