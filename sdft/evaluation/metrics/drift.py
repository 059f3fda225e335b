"""Drift: distance of an image to the base model's image for the same prompt and seed.

A cosine or LPIPS distance of 0 means no forgetting. The reference is the distance between different seeds of the base: at that
level an image shares only its prompt with the base's image. Underspecified prompts reach it early, since a small weight change
alters the image of a seed completely; `DistributionDrift` then tells whether all images together still match the base's.
"""

import torch

from sdft.evaluation.metrics.base import ImageMetric
from sdft.evaluation.metrics.feature_extractor import FeatureExtractor
from sdft.evaluation.metrics.fid_kid_cmmd import CMMD


class BaseDrift(ImageMetric):
    """1 - cosine (with a feature extractor) or perceptual distance of each image to the base's; lower is better.

    Images come in the order of the base's, which are `images` per prompt.
    """

    description = "Distance to the base's image for the same seed. Real: distance between seeds of the base."
    higher_is_better = False

    def setup(self, scorer, data):
        super().setup(scorer, data)
        self.base, self.images = data.base_images, data.images

    def score_images(self, images, prompts):
        start = sum(map(len, self.collected))
        return self.compute_distances(images, self.base[start : start + len(images)])

    def compute_distances(self, ones, others):
        """Distance of each pair `[pairs]`."""
        assert len(ones) == len(others), "every image needs a counterpart"
        if isinstance(self.scorer, FeatureExtractor):
            return (1 - (self.scorer.embed_images(ones) * self.scorer.embed_images(others)).sum(1)).clamp(min=0)
        return self.scorer.compute_distances(ones, others)

    def compute_reference(self):
        """Mean distance between consecutive base images of the same prompt."""
        if self.images < 2:
            return None
        starts = range(0, len(self.base), self.images)
        others = [self.base[start + (i + 1) % self.images] for start in starts for i in range(self.images)]
        return float(torch.as_tensor(self.compute_distances(self.base, others)).mean())


class DistributionDrift(CMMD):
    """CMMD between all images and all of the base's, 0 or more; lower is better."""

    description = "Distance between all images and all of the base's. Real: between two halves of the base's images."

    def select_references(self, data):
        return data.base_images
