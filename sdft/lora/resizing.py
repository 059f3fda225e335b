"""Reduce the rank of a LoRA file: the best approximation of every layer's weight change."""

import torch

from sdft.lora.file import LoraFile
from sdft.lora.low_rank import reduce_rank
from sdft.lora.low_rank_result import LowRankResult


def format_optional(value: float | None) -> str:
    return "null" if value is None else str(value)


def resize_lora_file(file: LoraFile, rank: int | None, energy: float | None) -> LowRankResult:
    """Approximate every layer with at most `rank`, or with the lowest rank that retains this fraction of its energy.

    DoRA magnitudes and layers of a lower rank are unchanged.
    """
    max_rank = max(layer.rank for layer in file.layers.values())
    if (rank is None) == (energy is None):
        raise ValueError(
            f"rank={format_optional(rank)} energy={format_optional(energy)}: give one of them, "
            f"such as rank={max(1, max_rank // 2)} or energy=0.95"
        )
    if rank is not None and not 1 <= rank <= max_rank:
        raise ValueError(f"rank={rank}: choose 1 to {max_rank}, the rank of {file.path.name}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy={energy}: choose more than 0 and at most 1, such as 0.95")
    result = LowRankResult()
    for (part, name), layer in file.layers.items():
        exact = layer.to_low_rank()
        if not torch.count_nonzero(exact[0]) or not torch.count_nonzero(exact[1]):
            product = exact[0][:, :1], exact[1][:1]
        else:
            product = reduce_rank(exact, rank, energy)
        result.add_layer(part, name, layer.shape, exact, product, layer.magnitude)
    return result
