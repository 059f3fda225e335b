"""The process of a program: streams that never fail, and signals."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sdft.cli.output import protect_output
from sdft.cli.signals import SignalListener


@contextmanager
def prepare_process() -> Iterator[SignalListener]:
    """Protect the standard streams for good, and handle signals inside the context."""
    protect_output()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that nothing here uses
    with SignalListener() as signals:
        yield signals
