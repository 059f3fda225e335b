"""Memorisation: similarity of an image to its nearest training image (as in Somepalli et al., 2023)."""

from PIL import Image

from sdft.evaluation.metrics.base import ImageMetric
from sdft.evaluation.metrics.feature_extractor import FeatureExtractor


class NearestTrainingImage(ImageMetric):
    """Largest cosine to the features of any reference, -1..1; lower is better, 1 is a copy."""

    description = "Memorisation: cosine to the nearest training image; suspicious if above that of real images."
    baseline = "real"
    higher_is_better = False

    def __init__(self, feature_extractor: FeatureExtractor, references: list[Image.Image]):
        super().__init__()
        self.feature_extractor = feature_extractor
        self.reference_features = feature_extractor.embed_images(references)

    def score_images(self, images, prompts):
        return self.compute_cosines(images).amax(1)

    def compute_cosines(self, images):
        """Cosine of every image with every reference `[images, references]`."""
        return self.feature_extractor.embed_images(images) @ self.reference_features.T

    def compute_reference(self):
        """Mean cosine of each reference to its nearest other one: new images are not expected to be nearer."""
        if len(self.reference_features) < 2:
            return None
        return float((self.reference_features @ self.reference_features.T).fill_diagonal_(-1).amax(1).mean())
