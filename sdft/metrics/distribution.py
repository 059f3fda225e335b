"""CMMD: how far generated pictures, all together, are from real ones (Jayasumana et al., 2024)."""

import torch
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

from sdft.metrics.clip import Clip

SIGMA, SCALE = 10.0, 1000.0  # of the paper


class CMMD(Metric):
    """1000 times the squared maximum mean discrepancy of unit CLIP features under exp(-|x - y|^2 / 2 sigma^2).

    0 for equal sets, lower is better; comparable only between scores of one CLIP.
    """

    higher_is_better = False
    form = "{:.2f}"

    def __init__(self, clip: Clip, real: list[Image.Image]):
        super().__init__(sync_on_compute=False)  # the first process alone evaluates
        self.clip, self.real = clip, clip.images(real)
        self.add_state("made", [], dist_reduce_fx="cat")

    def update(self, pictures: list[Image.Image], prompts: list[str]) -> None:
        self.made.append(self.clip.images(pictures))

    def compute(self) -> Tensor:
        if not self.made:
            raise ValueError("CMMD of no pictures")
        return discrepancy(self.real, torch.cat(self.made))

    def real_vs_real(self) -> float:
        """That of one half of the real pictures to the other: what to compare with."""
        return float(discrepancy(self.real[::2], self.real[1::2]))


def discrepancy(one: Tensor, other: Tensor) -> Tensor:
    """`[n, width]` against `[m, width]`."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-torch.cdist(a, b).square() / (2 * SIGMA**2)).double().exp().mean()

    return SCALE * (kernel(one, one) + kernel(other, other) - 2 * kernel(one, other))
