"""CLIP-T: does the picture match its prompt? (Hessel et al., 2021; DreamBooth's CLIP-T is the plain cosine.)"""

from sdft.evaluation.metrics.base import PictureMetric
from sdft.evaluation.metrics.clip import Clip


class PromptScore(PictureMetric):
    """Cosine of a picture's and its prompt's CLIP features, -1..1, higher is better."""

    what = "Does the picture match its prompt? Cosine of their CLIP features."

    def __init__(self, clip: Clip):
        super().__init__()
        self.clip = clip

    def values(self, pictures, prompts):
        return (self.clip.images(pictures) * self.clip.texts(prompts)).sum(1)
