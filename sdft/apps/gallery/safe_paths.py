"""Files below a folder, and none that a link in it leads to elsewhere."""

import json
from pathlib import Path

MAX_FILE_BYTES = 16 * 2**20  # bytes of a file that is read whole


def is_visible_name(name: str) -> bool:
    """Whether a folder or file of that name is one for the eyes."""
    return bool(name) and not name.startswith(".") and not set(name) & {"/", "\\", "\0"}


def resolve_safe_path(folder: Path, *parts: str) -> Path:
    """A plain file below `folder`, by its true path; `FileNotFoundError` for whatever else it may be."""
    try:
        root = folder.resolve(strict=True)
        file = root.joinpath(*parts).resolve(strict=True)
        if (
            all(map(is_visible_name, parts))
            and file.is_file()
            and all(map(is_visible_name, file.relative_to(root).parts))
        ):
            return file
    except (OSError, ValueError, RuntimeError):  # gone; elsewhere, or no name; links in a circle
        pass
    raise FileNotFoundError("/".join(parts).encode("utf-8", "replace").decode())


def read_safe_bytes(folder: Path, *parts: str, most: int = MAX_FILE_BYTES) -> bytes:
    """Of a file that is not too large; `OSError` for others."""
    file = resolve_safe_path(folder, *parts)
    if file.stat().st_size > most:
        raise OSError("too large")
    return file.read_bytes()


def read_safe_json(folder: Path, *parts: str):
    """What a JSON file says; None when there is none, or it cannot be read."""
    try:
        return json.loads(read_safe_bytes(folder, *parts).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
