"""CLIP-I and DINO: similarity to the training images (Ruiz et al., 2023, section 4.2).

On images of the class, or of anything but the subject, the same number is PRES: how much of the subject leaked into them; lower
is better.
"""

from PIL import Image

from sdft.evaluation.metrics.base import ImageMetric, mean_excluding_self
from sdft.evaluation.metrics.feature_extractor import FeatureExtractor


class ReferenceSimilarity(ImageMetric):
    """Mean cosine to the features of all `references`, -1..1; higher is more similar."""

    description = "Similarity to the training images: mean cosine to all of them."

    def __init__(self, feature_extractor: FeatureExtractor, references: list[Image.Image]):
        super().__init__()
        self.feature_extractor = feature_extractor
        self.reference_features = feature_extractor.embed_images(references)

    def score_images(self, images, prompts):
        return (self.feature_extractor.embed_images(images) @ self.reference_features.T).mean(1)

    def compute_reference(self):
        """Mean cosine among the references, without self-pairs."""
        if len(self.reference_features) < 2:
            return None
        return float(mean_excluding_self(self.reference_features @ self.reference_features.T).mean())


class ClassPreservation(ReferenceSimilarity):
    """PRES: mean cosine between the subject's references and images that should not show it; -1..1, lower is better."""

    description = "Leakage of the training images: mean cosine to all of them."
    higher_is_better = False
