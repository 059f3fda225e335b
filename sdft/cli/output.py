"""Standard streams that never fail: what cannot be encoded is escaped, what cannot be written is dropped."""

import io
import os
import select
import sys
from contextlib import suppress


class LossyFile(io.RawIOBase):
    """Writes to `raw`, and drops what it refuses: its reader has gone, its terminal is closed, or its disk is full."""

    def __init__(self, raw: io.RawIOBase):
        self.raw, self.name, self.mode = raw, raw.name, raw.mode

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.raw.fileno()

    def isatty(self) -> bool:
        return self.raw.isatty()

    def write(self, data) -> int:
        try:
            while (count := self.raw.write(data)) is None:  # non-blocking, and full
                select.select([], [self.raw], [])
            return count
        except OSError:
            return memoryview(data).nbytes


def protect_output() -> None:
    """Make `sys.stdout` and `sys.stderr` lossy, and connect closed standard streams to the null device.

    Otherwise the next opened file would take the number of a closed stream, and what libraries print would end in that file.
    Streams that the caller has replaced are left alone.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null == descriptor:
                os.set_inheritable(null, True)
            else:
                os.dup2(null, descriptor)
                os.close(null)
        stream = getattr(sys, name)
        if name == "stdin" or stream is not getattr(sys, f"__{name}__"):
            continue
        setattr(sys, name, open_lossy(stream) if stream else open_null(descriptor))


def open_lossy(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """A lossy stream to the same file, with the same encoding and buffering."""
    with suppress(OSError):
        stream.flush()
    unbuffered = stream.write_through  # python -u
    file = LossyFile(stream.buffer if unbuffered else stream.buffer.raw)
    buffer = file if unbuffered else io.BufferedWriter(file)
    options = {"line_buffering": stream.line_buffering, "write_through": unbuffered}
    return io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", **options)


def open_null(descriptor: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(io.FileIO(descriptor, "w")), "utf-8", "backslashreplace")
