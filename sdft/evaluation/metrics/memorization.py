"""Memorisation: how near is a picture to the training picture that it is nearest to? (As in Somepalli et al., 2023.)"""

from PIL import Image

from sdft.evaluation.metrics.base import ImageMetric
from sdft.evaluation.metrics.feature_extractor import FeatureExtractor


class NearestTrainingImage(ImageMetric):
    """Largest cosine to the features of any of the `real` pictures, -1..1; lower is better, 1 is a copy."""

    what = "Is it a copy? Cosine to the nearest training picture; suspicious beyond what real pictures have."
    against = "real"
    higher_is_better = False

    def __init__(self, feature_extractor: FeatureExtractor, real: list[Image.Image]):
        super().__init__()
        self.feature_extractor, self.real = feature_extractor, feature_extractor.embed_images(real)

    def score_images(self, pictures, prompts):
        return self.cosines(pictures).amax(1)

    def cosines(self, pictures):
        return self.feature_extractor.embed_images(pictures) @ self.real.T

    def compute_reference(self):
        """Of each real picture to the nearest other one: nearer than that is nearer than new pictures are."""
        if len(self.real) < 2:
            return None
        return float((self.real @ self.real.T).fill_diagonal_(-1).amax(1).mean())
