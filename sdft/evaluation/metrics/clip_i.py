"""CLIP-I and DINO: similarity to the training images (Ruiz et al., 2023, section 4.2).

On images of the class, or of anything but the subject, the same number is PRES: how much of the subject leaked into them; lower
is better.
"""

from sdft.evaluation.metrics.base import ImageMetric, list_images, mean_excluding_self


class ReferenceSimilarity(ImageMetric):
    """Mean cosine to the features of all training images, -1..1; higher is more similar. The scorer is a feature extractor."""

    description = "Similarity to the training images: mean cosine to all of them."

    def setup(self, scorer, data):
        super().setup(scorer, data)
        self.reference_features = scorer.embed_images(list_images(data.training_images))

    def score_images(self, images, prompts):
        return (self.scorer.embed_images(images) @ self.reference_features.T).mean(1)

    def compute_reference(self):
        """Mean cosine among the training images, without self-pairs."""
        if len(self.reference_features) < 2:
            return None
        return float(mean_excluding_self(self.reference_features @ self.reference_features.T).mean())


class ClassPreservation(ReferenceSimilarity):
    """PRES: mean cosine between the subject's images and images that should not show it; -1..1, lower is better."""

    description = "Leakage of the training images: mean cosine to all of them."
    higher_is_better = False
