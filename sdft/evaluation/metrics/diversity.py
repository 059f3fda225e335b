"""DIV: perceptual distance between images of the same prompt (Ruiz et al., 2023, section 4.3: mean pairwise LPIPS)."""

import math

import torch

from sdft.data.dataset import CaptionedImage
from sdft.evaluation.metrics.base import ImageMetric, mean_excluding_self


class Diversity(ImageMetric):
    """Mean distance of an image to the others of its prompt; 0 if all are equal, higher is better, NaN for a single image."""

    description = "Diversity: mean perceptual distance between images of one prompt; too low if below real images."
    baseline = "real"

    def __init__(self, perceptual, images: int, real_images: list[CaptionedImage] = ()):
        super().__init__()
        self.perceptual, self.images, self.real_images = perceptual, images, list(real_images)

    def score_images(self, images, prompts):
        """Images are grouped by position, `images` per prompt: distinct prompts may have the same scoring prompt."""
        return self.compute_group_distances([index // self.images for index in range(len(images))], images)

    def compute_group_distances(self, groups: list, images):
        """Mean distance of each image to the others with the same group key `[images]`; NaN in groups of one."""
        distances = torch.full((len(images),), torch.nan, dtype=torch.double)
        for group in dict.fromkeys(groups):
            members = [i for i, other in enumerate(groups) if other == group]
            if len(members) > 1:
                pairwise = self.perceptual.compute_pairwise([images[i] for i in members]).double()
                distances[members] = mean_excluding_self(pairwise)
        return distances

    def compute_reference(self):
        """Diversity of real images with the same caption."""
        captions, images = [s.caption for s in self.real_images], [s.image for s in self.real_images]
        value = float(self.compute_group_distances(captions, images).nanmean())
        return None if math.isnan(value) else value
