"""DIV: how different are pictures of one prompt from each other? (Ruiz et al., 2023, section 4.3: mean LPIPS of their pairs.)"""

import math

import torch

from sdft.data.dataset import CaptionedImage
from sdft.evaluation.metrics.base import ImageMetric, mean_excluding_self


class Diversity(ImageMetric):
    """Mean distance of a picture to the others of its prompt, 0 when all are equal, higher is better; one alone has none."""

    what = "How different are pictures of one prompt? Mean perceptual distance; too low below real pictures."
    against = "real"

    def __init__(self, perceptual, images: int, real: list[CaptionedImage] = ()):
        super().__init__()
        self.perceptual, self.images, self.real = perceptual, images, list(real)

    def score_images(self, pictures, prompts):
        """Pictures come prompt by prompt, `images` of each: two prompts may be worded alike to a judge."""
        return self.within([index // self.images for index in range(len(pictures))], pictures)

    def within(self, groups: list, pictures):
        found = torch.full((len(pictures),), torch.nan, dtype=torch.double)
        for group in dict.fromkeys(groups):
            same = [i for i, other in enumerate(groups) if other == group]
            if len(same) > 1:
                found[same] = mean_excluding_self(self.perceptual.pairwise([pictures[i] for i in same]).double())
        return found

    def compute_reference(self):
        """Of real pictures to the others of their caption."""
        found = float(self.within([p.caption for p in self.real], [p.image for p in self.real]).nanmean())
        return None if math.isnan(found) else found
