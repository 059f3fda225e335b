"""Memory that preparing a run has freed is returned to the system."""

import sys
from pathlib import Path

import pytest

from sdft.models.heap import return_free_memory


def read_anonymous_memory() -> int:
    """Bytes of this process, without memory-mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems return it by themselves")
def test_free_memory_between_living_blocks_is_returned():
    blocks = [bytearray(b"x") * (60_000 if number % 2 else 1000) for number in range(2000)]
    del blocks[1::2]
    before = read_anonymous_memory()
    return_free_memory()
    assert len(blocks) == 1000 and read_anonymous_memory() < before - 20_000_000
