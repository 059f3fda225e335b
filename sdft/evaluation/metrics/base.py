"""Metrics that give each picture a value; a score is their mean, and its uncertainty can be told from them."""

import torch
from PIL import Image
from torch import Tensor
from torchmetrics import Metric


class ImageMetric(Metric):
    """A picture that cannot have a value has NaN: it counts as a picture and is left out of the mean, and both numbers are told.

    One update brings all pictures of its prompts. `compute` raises `ValueError` when there were no pictures.
    """

    higher_is_better = True
    number_format = "{:.3f}"
    what = ""  # in a line, for people
    against = "base"  # what it is worse than when it is bad: the base, or what real pictures have

    def __init__(self):
        super().__init__(sync_on_compute=False)  # the first process alone evaluates
        self.add_state("collected_values", [], dist_reduce_fx="cat")

    def score_images(self, pictures: list[Image.Image], prompts: list[str]) -> Tensor:
        """One value a picture `[pictures]`."""
        raise NotImplementedError

    def update(self, pictures: list[Image.Image], prompts: list[str]) -> None:
        if pictures:
            self.collected_values.append(self.score_images(pictures, prompts).double())

    def per_image_values(self) -> Tensor:
        """All values so far `[pictures]`."""
        if not self.collected_values:
            raise ValueError(f"{type(self).__name__} of no pictures")
        return torch.cat(self.collected_values)

    def compute(self) -> Tensor:
        """The mean of those that have a value; NaN when none has."""
        return self.per_image_values().nanmean()

    def compute_reference(self) -> float | None:
        """What real pictures score against each other; None where that cannot be asked."""
        return None


def mean_excluding_self(similarities: Tensor) -> Tensor:
    """`[n, n]` of n pictures among themselves: each one's mean over the others `[n]`; a picture is no evidence about itself."""
    n = len(similarities)
    return (similarities.sum(1) - similarities.diagonal()) / (n - 1)
