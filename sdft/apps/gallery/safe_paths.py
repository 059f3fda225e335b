"""Access files below a folder, never outside of it through symbolic links."""

import json
from pathlib import Path

MAX_FILE_BYTES = 16 * 2**20  # bytes


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


def read_safe_json(folder: Path, *parts: str):
    """Content of a JSON file, None if it is missing or unreadable."""
    try:
        return json.loads(read_safe_bytes(folder, *parts).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
