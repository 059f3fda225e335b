"""Randomness as a function: every draw is computed from (seed, what it is for, which one), never from a global state.

So a sample's noise does not depend on the number of workers, processes or micro-batches, and a resumed run sees what an
uninterrupted one would have seen.
"""

from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def make_generator(seed: int, *key) -> Generator:
    """A CPU generator of its own for each (seed, key): equal keys draw equal numbers on every machine."""
    digest = blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def pyramid_noise(shape: tuple[int, int, int], discount: float, chance: Generator) -> Tensor:
    """Noise at every scale, `[channels, h, w]`, unit variance: layer i is 2^i times coarser and `discount`^i as strong.

    Lets whole regions differ in brightness (Whitaker, 2023). `discount=0` is plain normal noise.
    """
    noise = torch.randn(shape, generator=chance)
    channels, height, width = shape
    strength, side = discount, min(height, width) // 2
    while strength > 0 and side >= 1:
        coarse = torch.randn(1, channels, side, max(1, side * width // height), generator=chance)
        noise += strength * F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)[0]
        strength, side = strength * discount, side // 2
    return noise / noise.std() if discount else noise


def draw_permutation(seed: int, epoch: int, count: int) -> Tensor:
    """The order in which `count` images are seen in one epoch: a permutation `[count]`."""
    return torch.randperm(count, generator=make_generator(seed, "order", epoch))
