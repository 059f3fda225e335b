"""Randomness as a function: every draw is computed from (seed, what it is for, which one), never from a global state.

So a sample's noise does not depend on the number of workers, processes or micro-batches, and a resumed run sees what an
uninterrupted one would have seen.
"""

from hashlib import blake2b

import torch
from torch import Generator, Tensor


def generator(seed: int, *key) -> Generator:
    """A CPU generator of its own for each (seed, key): equal keys draw equal numbers on every machine."""
    digest = blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def order(seed: int, epoch: int, count: int) -> Tensor:
    """The order in which `count` images are seen in one epoch: a permutation `[count]`."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))
