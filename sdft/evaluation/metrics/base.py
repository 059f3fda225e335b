"""Metrics with one value per image; a score is their mean, and their spread gives its confidence interval."""

import torch
from PIL import Image
from torch import Tensor
from torchmetrics import Metric


class ImageMetric(Metric):
    """Images without a value are NaN: excluded from the mean; both counts are reported.

    Each update brings all images of its prompts. `compute` raises `ValueError` if there were no images.
    """

    higher_is_better = True
    number_format = "{:.3f}"
    description = ""  # one line, for the report
    baseline = "base"  # compared with for the verdict: "base" model, or "real" images

    def __init__(self):
        super().__init__(sync_on_compute=False)  # only rank 0 evaluates
        self.add_state("collected_values", [], dist_reduce_fx="cat")

    def score_images(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        """One value per image `[images]`."""
        raise NotImplementedError

    def update(self, images: list[Image.Image], prompts: list[str]) -> None:
        if images:
            self.collected_values.append(self.score_images(images, prompts).double())

    def per_image_values(self) -> Tensor:
        """All values since the last reset `[images]`."""
        if not self.collected_values:
            raise ValueError(f"{type(self).__name__}: no images to score")
        return torch.cat(self.collected_values)

    def compute(self) -> Tensor:
        """Mean over the images with a value; NaN if there is none."""
        return self.per_image_values().nanmean()

    def compute_reference(self) -> float | None:
        """Score of real images against each other; None if undefined."""
        return None


def mean_excluding_self(similarities: Tensor) -> Tensor:
    """Row means `[n]` of `[n, n]` pairwise similarities, without the diagonal."""
    n = len(similarities)
    return (similarities.sum(1) - similarities.diagonal()) / (n - 1)
