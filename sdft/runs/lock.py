"""One writer a folder: a lock that ends with its process, however that ends."""

import json
import os
import socket
from pathlib import Path

LOCK_FILE = "lock"


class Lock:
    """Held from its making until `release`; `ValueError` that names the other process when the folder is `description`'s already.

    What a killed process leaves is no lock: the system lets go of it. `left` then says who that was. File systems without
    locks are told by the file's content alone.
    """

    def __init__(self, folder: Path, description: str):
        self.path, self.description = folder / LOCK_FILE, description
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            self.file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115
            self.acquire()
            if self.path.exists() and os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path)):
                break
            self.file.close()  # the one before has removed it meanwhile
        self.previous_holder = self.read_holder()
        self.file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, self.file)
        self.file.flush()

    def acquire(self) -> None:
        try:
            import fcntl

            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone, not of those that it forks
        except (BlockingIOError, PermissionError):
            self.raise_locked()
        except (ImportError, OSError):  # Windows; a file system without locks
            there = self.read_holder()
            if there and there["host"] == socket.gethostname() and is_alive(there["pid"]):
                self.raise_locked()

    def read_holder(self) -> dict | None:
        self.file.seek(0)
        content = self.file.read()
        return json.loads(content) if content.endswith("}") else None

    def raise_locked(self) -> None:
        there = self.read_holder()
        self.file.close()
        who = f"process {there['pid']} on {there['host']}" if there else "another process"
        raise ValueError(f"{self.path.parent}: {self.description} is running there, {who}; wait for it, or stop it")

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
