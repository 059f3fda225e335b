"""Number of CPU threads per operation: one for small models, whose operations finish before another thread wakes up."""

import os
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch import nn

# elements of the UNet's largest activation; below this, one thread is as fast or faster (benchmarks/RESULTS.md)
MIN_PARALLEL_SIZE = 2**18


def choose_num_threads(unet: nn.Module, shape: Sequence[int]) -> int:
    """Threads for latents of `shape` `[batch, 4, h, w]`.

    OMP_WAIT_POLICY=ACTIVE keeps threads spinning between operations, so all are used; this slows other processes.
    """
    batch, _, height, width = shape
    is_spinning = os.environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE"
    is_small = batch * height * width * unet.config.block_out_channels[0] < MIN_PARALLEL_SIZE
    return 1 if is_small and not is_spinning and unet.device.type == "cpu" else torch.get_num_threads()


@contextmanager
def limit_threads(unet: nn.Module, shape: Sequence[int]):
    """Use the chosen number of threads; restore the previous number afterwards."""
    previous = torch.get_num_threads()
    torch.set_num_threads(choose_num_threads(unet, shape))
    try:
        yield
    finally:
        torch.set_num_threads(previous)
