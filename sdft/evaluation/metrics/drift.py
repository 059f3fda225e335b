"""Drift: how far has a picture moved from what the base model makes of the same prompt and seed?

0 cosine distance, and 0 LPIPS, is a base that was not forgotten. What other seeds of the base differ by is the reference:
a drift of that size is a picture that has nothing left in common with the old one but its prompt. A prompt that leaves much
open reaches it soon, for a small change gives the same seed another look; `SetDrift` then tells whether all looks together
are still those of the base.
"""

import torch
from PIL import Image

from sdft.evaluation.metrics.base import ImageMetric
from sdft.evaluation.metrics.feature_extractor import FeatureExtractor
from sdft.evaluation.metrics.fid_kid_cmmd import CMMD


class BaseDrift(ImageMetric):
    """1 - cosine (of an `Embedder`), or the perceptual distance, of each picture to its partner in `base`; lower is better.

    Pictures come in the order of `base`, which holds `images` of each prompt.
    """

    what = "How far has it moved from the base of the same seed? Real: other seeds of the base."
    higher_is_better = False

    def __init__(self, scorer, base: list[Image.Image], images: int):
        super().__init__()
        self.scorer, self.base, self.images = scorer, base, images

    def score_images(self, pictures, prompts):
        start = sum(map(len, self.collected_values))
        return self.between(pictures, self.base[start : start + len(pictures)])

    def between(self, ones, others):
        assert len(ones) == len(others), "every picture needs its partner"
        if isinstance(self.scorer, FeatureExtractor):
            return (1 - (self.scorer.embed_images(ones) * self.scorer.embed_images(others)).sum(1)).clamp(min=0)
        return self.scorer.distances(ones, others)

    def compute_reference(self):
        """Of the base's pictures to the next ones of the same prompt."""
        if self.images < 2:
            return None
        starts = range(0, len(self.base), self.images)
        others = [self.base[start + (i + 1) % self.images] for start in starts for i in range(self.images)]
        return float(torch.as_tensor(self.between(self.base, others)).mean())


class DistributionDrift(CMMD):
    """CMMD of all pictures to all of the base's, 0 or more; lower is better."""

    what = "How far have all pictures together moved from the base's? Real: one half of the base's from the other."
