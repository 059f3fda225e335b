"""Free memory between living blocks, which glibc keeps for the process; other systems return it by themselves."""

import ctypes
import sys


def return_free_memory() -> None:
    """Return it to the system: what listing and checking very many images took, workers and other programs then have."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # musl has none
        trim(ctypes.c_size_t(0))
