"""Memorisation: similarity of an image to its nearest training image (as in Somepalli et al., 2023)."""

from sdft.evaluation.metrics.base import ImageMetric, list_images


class NearestTrainingImage(ImageMetric):
    """Largest cosine to the features of any training image, -1..1; lower is better, 1 is a copy."""

    description = "Memorisation: cosine to the nearest training image; suspicious if above that of real images."
    baseline = "real"
    higher_is_better = False

    def __init__(self, scorer: str = "subject"):
        super().__init__(scorer)

    def setup(self, scorer, data):
        super().setup(scorer, data)
        self.reference_features = scorer.embed_images(list_images(data.training_images))

    def score_images(self, images, prompts):
        return self.compute_cosines(images).amax(1)

    def compute_cosines(self, images):
        """Cosine of every image with every training image `[images, training images]`."""
        return self.scorer.embed_images(images) @ self.reference_features.T

    def compute_reference(self):
        """Mean cosine of each training image to its nearest other one: new images are not expected to be nearer."""
        if len(self.reference_features) < 2:
            return None
        return float((self.reference_features @ self.reference_features.T).fill_diagonal_(-1).amax(1).mean())
