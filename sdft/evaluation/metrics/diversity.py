"""DIV: perceptual distance between images of the same prompt (Ruiz et al., 2023, section 4.3: mean pairwise LPIPS)."""

import math

import torch

from sdft.evaluation.metrics.base import ImageMetric, list_images, mean_excluding_self

MAX_REAL_IMAGES = 64  # compared pairwise


class Diversity(ImageMetric):
    """Mean distance of an image to the others of its prompt; 0 if all are equal, higher is better, NaN for a single image.

    The scorer is a perceptual distance.
    """

    description = "Diversity: mean perceptual distance between images of one prompt; too low if below real images."
    baseline = "real"

    def __init__(self, scorer: str = "perceptual"):
        super().__init__(scorer)

    def setup(self, scorer, data):
        super().setup(scorer, data)
        self.images, self.real_images = data.images, data.real_images[:MAX_REAL_IMAGES]

    def score_images(self, images, prompts):
        """Images are grouped by position, `images` per prompt: distinct prompts may have the same scoring prompt."""
        return self.compute_group_distances([index // self.images for index in range(len(images))], images)

    def compute_group_distances(self, groups: list, images):
        """Mean distance of each image to the others with the same group key `[images]`; NaN in groups of one."""
        distances = torch.full((len(images),), torch.nan, dtype=torch.double)
        for group in dict.fromkeys(groups):
            members = [i for i, other in enumerate(groups) if other == group]
            if len(members) > 1:
                pairwise = self.scorer.compute_pairwise([images[i] for i in members]).double()
                distances[members] = mean_excluding_self(pairwise)
        return distances

    def compute_reference(self):
        """Diversity of real images with the same caption."""
        captions = [sample.caption for sample in self.real_images]
        value = float(self.compute_group_distances(captions, list_images(self.real_images)).nanmean())
        return None if math.isnan(value) else value
