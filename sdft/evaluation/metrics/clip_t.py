"""CLIP-T: does the picture match its prompt? (Hessel et al., 2021; DreamBooth's CLIP-T is the plain cosine.)"""

from sdft.evaluation.metrics.base import ImageMetric
from sdft.evaluation.metrics.clip import ClipFeatureExtractor


class ClipT(ImageMetric):
    """Cosine of a picture's and its prompt's CLIP features, -1..1, higher is better."""

    what = "Does the picture match its prompt? Cosine of their CLIP features."

    def __init__(self, clip: ClipFeatureExtractor):
        super().__init__()
        self.clip = clip

    def score_images(self, pictures, prompts):
        return (self.clip.embed_images(pictures) * self.clip.embed_texts(prompts)).sum(1)
