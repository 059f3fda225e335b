"""CLIP-I and DINO: does the picture look like the training pictures? (Ruiz et al., 2023, section 4.2.)

Asked of pictures of the class, or of anything that is not the subject, the same number is PRES: how much of the subject has
leaked into them, where lower is better.
"""

from PIL import Image

from sdft.evaluation.metrics.base import ImageMetric, mean_excluding_self
from sdft.evaluation.metrics.feature_extractor import FeatureExtractor


class ReferenceSimilarity(ImageMetric):
    """Mean cosine to the features of all `real` pictures, -1..1; higher is more alike."""

    what = "Does it look like the training pictures? Mean cosine to all of them."

    def __init__(self, feature_extractor: FeatureExtractor, real: list[Image.Image]):
        super().__init__()
        self.feature_extractor, self.real = feature_extractor, feature_extractor.embed_images(real)

    def score_images(self, pictures, prompts):
        return (self.feature_extractor.embed_images(pictures) @ self.real.T).mean(1)

    def compute_reference(self):
        """Among the real pictures, without pairs of a picture with itself."""
        if len(self.real) < 2:
            return None
        return float(mean_excluding_self(self.real @ self.real.T).mean())


class ClassPreservation(ReferenceSimilarity):
    """PRES: mean cosine to all real pictures of the subject, of pictures that should not show it; -1..1, lower is better."""

    what = "How much of the training pictures has leaked into it? Mean cosine to all of them."
    higher_is_better = False
