"""Metrics that give each picture a value; a score is their mean, and its uncertainty can be told from them."""

import torch
from PIL import Image
from torch import Tensor
from torchmetrics import Metric


class PictureMetric(Metric):
    """A picture that cannot have a value has NaN: it counts as a picture and is left out of the mean, and both numbers are told.

    One update brings all pictures of its prompts. `compute` raises `ValueError` when there were no pictures.
    """

    higher_is_better = True
    form = "{:.3f}"
    what = ""  # in a line, for people
    against = "base"  # what it is worse than when it is bad: the base, or what real pictures have

    def __init__(self):
        super().__init__(sync_on_compute=False)  # the first process alone evaluates
        self.add_state("found", [], dist_reduce_fx="cat")

    def values(self, pictures: list[Image.Image], prompts: list[str]) -> Tensor:
        """One value a picture `[pictures]`."""
        raise NotImplementedError

    def update(self, pictures: list[Image.Image], prompts: list[str]) -> None:
        if pictures:
            self.found.append(self.values(pictures, prompts).double())

    def each(self) -> Tensor:
        """All values so far `[pictures]`."""
        if not self.found:
            raise ValueError(f"{type(self).__name__} of no pictures")
        return torch.cat(self.found)

    def compute(self) -> Tensor:
        """The mean of those that have a value; NaN when none has."""
        return self.each().nanmean()

    def reference(self) -> float | None:
        """What real pictures score against each other; None where that cannot be asked."""
        return None


def mean_without_self(similarities: Tensor) -> Tensor:
    """`[n, n]` of n pictures among themselves: each one's mean over the others `[n]`; a picture is no evidence about itself."""
    n = len(similarities)
    return (similarities.sum(1) - similarities.diagonal()) / (n - 1)
