"""Stochastic rounding to bf16: up or down with the probabilities that make the mean exact (Zamirai et al., 2020).

Updates below the resolution of bf16, 1/256 of a weight, are lost by rounding to nearest, but not in the mean over random draws.
"""

import torch
from torch import Generator, Tensor

DROPPED_BITS = 16  # of the 23 bits of an fp32 mantissa; bf16 has the exponent of fp32


def round_stochastically_(values: Tensor, generator: Generator | None = None) -> Tensor:
    """Round fp32 `values` in place to numbers that bf16 represents, so that a cast to bf16 is exact.

    Numbers that bf16 represents, infinities and NaN stay as they are. They are drawn on the device of `values`, without a sync.
    """
    bits = torch.empty_like(values, dtype=torch.int32).random_(0, 1 << DROPPED_BITS, generator=generator)
    bits.add_(values.view(torch.int32)).bitwise_and_(-1 << DROPPED_BITS)
    is_nan = values.isnan()  # a NaN of all ones would overflow to -0
    return torch.where(is_nan, values, bits.view(torch.float32), out=values)
