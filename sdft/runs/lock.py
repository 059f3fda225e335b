"""Exclusive lock of a folder, released by the operating system when its process ends."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK_FILE = "lock"


@contextmanager
def wait_for_lock(file: Path) -> Iterator[None]:
    """Hold an exclusive lock of `file`, waiting for other processes; none where locks or the file are not possible."""
    try:
        import fcntl

        file.parent.mkdir(parents=True, exist_ok=True)
        stream = open(file, "a")  # noqa: SIM115
    except (ImportError, OSError):
        yield
        return
    with stream:
        with suppress(OSError):
            fcntl.lockf(stream, fcntl.LOCK_EX)
        yield


class Lock:
    """Exclusive folder lock, acquired on construction. Raises `ValueError` that names the holder.

    A lock file left by a dead process is ignored; `previous_holder` says who it was. On file systems without locks, the
    content of the file alone decides.
    """

    def __init__(self, folder: Path, description: str):
        self.path, self.description = folder / LOCK_FILE, description
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            self.file = open(self.path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
            self.acquire()
            if self.path.exists() and os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path)):
                break
            self.file.close()  # the previous holder has just deleted this file
        if (content := self.read_content()) and not content.startswith('{"pid"'):
            self.file.close()
            raise ValueError(f"{self.path}: not a lock file of this program; move it or choose another folder")
        self.previous_holder = self.read_holder()
        self.file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, self.file)
        self.file.flush()

    def acquire(self) -> None:
        try:
            import fcntl

            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by forked processes
        except (BlockingIOError, PermissionError):
            self.raise_locked()
        except (ImportError, OSError):  # Windows; a file system without locks
            holder = self.read_holder()
            if holder and holder["host"] == socket.gethostname() and is_alive(holder["pid"]):
                self.raise_locked()

    def read_content(self) -> str:
        self.file.seek(0)
        return self.file.read()

    def read_holder(self) -> dict | None:
        content = self.read_content()
        return json.loads(content) if content.endswith("}") else None

    def raise_locked(self) -> None:
        holder = self.read_holder()
        self.file.close()
        process = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
        raise ValueError(f"{self.path.parent}: in use by {self.description}, {process}; wait for it or stop it")

    def release(self) -> None:
        if not self.file.closed:
            self.path.unlink(missing_ok=True)
            self.file.close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_) -> None:
        self.release()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
