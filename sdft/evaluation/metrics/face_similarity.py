"""Is there a face, and is it the face of the training pictures? A picture without one is never dropped in silence."""

import torch
from PIL import Image
from torch import Tensor

from sdft.evaluation.metrics.base import ImageMetric, mean_excluding_self
from sdft.evaluation.metrics.face_embedding import FaceEmbedder


class FaceDetectionRate(ImageMetric):
    """Share of pictures with a face, 0..1, higher is better; the rest is what homework sheets count as faceless."""

    what = "Share of pictures with a face."
    number_format = "{:.0%}"

    def __init__(self, face_embedder: FaceEmbedder, real: list[Image.Image]):
        super().__init__()
        self.face_embedder, self.real = face_embedder, real

    def score_images(self, pictures, prompts):
        return torch.tensor([float(face is not None) for face in self.face_embedder.embed_faces(pictures)])

    def compute_reference(self):
        return float(self.score_images(self.real, []).mean())


class FacePairMetric(ImageMetric):
    """A mean over the (picture, training face) pairs of each picture."""

    faceless = float("nan")

    def __init__(self, face_embedder: FaceEmbedder, real: list[Image.Image]):
        super().__init__()
        self.face_embedder = face_embedder
        faces = [face for face in face_embedder.embed_faces(real) if face is not None]
        if not faces:
            raise ValueError(f"no face in any of the {len(real)} training pictures that faces are compared with")
        self.real = torch.stack(faces)

    def of(self, cosines: Tensor) -> Tensor:
        """What a pair counts, from its cosine."""
        return cosines

    def score_images(self, pictures, prompts):
        faces = self.face_embedder.embed_faces(pictures)
        return torch.tensor([self.faceless if f is None else float(self.of(self.real @ f).mean()) for f in faces])

    def compute_reference(self):
        """Among the training faces, without pairs of a face with itself."""
        if len(self.real) < 2:
            return None
        return float(mean_excluding_self(self.of((self.real @ self.real.T).clamp(-1, 1))).mean())


class FaceSimilarity(FacePairMetric):
    """Mean cosine of unit face features, -1..1, higher is better; pictures without a face have none."""

    what = "Is it the face of the training pictures? Mean cosine over pairs."


class FaceDistance(FacePairMetric):
    """Mean L2 distance of unit face features, 0..2, lower is better: the score of homework sheets (S0-41)."""

    what = "The same as mean L2 distance of unit features, as homework sheets ask it."
    higher_is_better = False

    def of(self, cosines):
        return (2 - 2 * cosines).clamp(min=0).sqrt()


class FaceVerificationRate(FacePairMetric):
    """Share of pairs at or above the face_embedder's own threshold, 0..1, higher is better; a picture without a face verifies none."""

    what = "Share of pairs of faces that the embedder takes for one person; a faceless picture has none."
    number_format, faceless = "{:.0%}", 0.0

    def of(self, cosines):
        return (cosines >= self.face_embedder.threshold).float()
