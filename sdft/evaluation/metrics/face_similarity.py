"""Face metrics: is there a face, and is it that of the training images? Images without a face are always counted."""

import torch
from torch import Tensor

from sdft.evaluation.metrics.base import ImageMetric, list_images, mean_excluding_self
from sdft.evaluation.metrics.feature_extractor import ScorerUnavailableError


class FaceMetric(ImageMetric):
    """The scorer is a `FaceEmbedder`."""

    def __init__(self, scorer: str = "faces"):
        super().__init__(scorer)


class FaceDetectionRate(FaceMetric):
    """Fraction of images with a face, 0..1, higher is better; homework sheets count the complement as faceless."""

    description = "Fraction of images with a face."
    number_format = "{:.0%}"

    def setup(self, scorer, data):
        super().setup(scorer, data)
        self.references = list_images(data.training_images)

    def score_images(self, images, prompts):
        return torch.tensor([float(face is not None) for face in self.scorer.embed_faces(images)])

    def compute_reference(self):
        return float(self.score_images(self.references, []).mean())


class FacePairMetric(FaceMetric):
    """Mean over the pairs of an image's face with every training face; `no_face_value` without a face."""

    no_face_value = float("nan")

    def setup(self, scorer, data):
        super().setup(scorer, data)
        faces = [face for face in scorer.embed_faces(list_images(data.training_images)) if face is not None]
        if not faces:
            count = len(data.training_images)
            raise ScorerUnavailableError(f"no face detected in the {count} training images", "face scores")
        self.reference_faces = torch.stack(faces)

    def convert_cosines(self, cosines: Tensor) -> Tensor:
        """Value of each pair, from its cosine."""
        return cosines

    def score_images(self, images, prompts):
        values = [
            self.no_face_value if face is None else float(self.convert_cosines(self.reference_faces @ face).mean())
            for face in self.scorer.embed_faces(images)
        ]
        return torch.tensor(values)

    def compute_reference(self):
        """Mean over pairs of training faces, without self-pairs."""
        if len(self.reference_faces) < 2:
            return None
        cosines = (self.reference_faces @ self.reference_faces.T).clamp(-1, 1)
        return float(mean_excluding_self(self.convert_cosines(cosines)).mean())


class FaceSimilarity(FacePairMetric):
    """Mean cosine of unit face features, -1..1, higher is better; NaN without a face."""

    description = "Face similarity to the training images: mean cosine over pairs."


class FaceDistance(FacePairMetric):
    """Mean L2 distance of unit face features, 0..2, lower is better: the score of homework sheets (S0-41)."""

    description = "Face distance to the training images: mean L2 distance of unit features, as in homework sheets."
    higher_is_better = False

    def convert_cosines(self, cosines):
        return (2 - 2 * cosines).clamp(min=0).sqrt()


class FaceVerificationRate(FacePairMetric):
    """Fraction of pairs at or above the embedder's threshold, 0..1, higher is better; 0 without a face."""

    description = "Fraction of face pairs verified as the same person; images without a face count as 0."
    number_format, no_face_value = "{:.0%}", 0.0

    def setup(self, scorer, data):
        super().setup(scorer, data)
        if scorer.threshold is None:
            raise ScorerUnavailableError(f"no default threshold for {scorer.name}; set metrics.face_threshold")

    def convert_cosines(self, cosines):
        return (cosines >= self.scorer.threshold).float()
