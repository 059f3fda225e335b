"""How many threads of a CPU share an operation: all, or one, where operations end before another thread has woken up."""

import os
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch import nn

MIN_PARALLEL_SIZE = (
    2**18
)  # numbers in the UNet's widest layer; below, one thread was as fast or faster: benchmarks/RESULTS.md


def choose_num_threads(unet: nn.Module, shape: Sequence[int]) -> int:
    """For latents of a `shape` `[batch, 4, h, w]`.

    OMP_WAIT_POLICY=ACTIVE keeps threads awake between operations, and so all of them; whoever shares the machine pays for that.
    """
    batch, _, height, width = shape
    awake = os.environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE"
    small = batch * height * width * unet.config.block_out_channels[0] < MIN_PARALLEL_SIZE
    return 1 if small and not awake and unet.device.type == "cpu" else torch.get_num_threads()


@contextmanager
def limit_threads(unet: nn.Module, shape: Sequence[int]):
    """Operations by so many threads, and afterwards by as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(choose_num_threads(unet, shape))
    try:
        yield
    finally:
        torch.set_num_threads(before)
