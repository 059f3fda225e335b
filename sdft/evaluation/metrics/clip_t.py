"""CLIP-T: does the image match its prompt? (Hessel et al., 2021; DreamBooth's CLIP-T is the plain cosine.)"""

from sdft.evaluation.metrics.base import ImageMetric
from sdft.evaluation.metrics.clip import ClipFeatureExtractor


class ClipT(ImageMetric):
    """Cosine of the CLIP features of image and prompt, -1..1, higher is better."""

    description = "Prompt fidelity: cosine of the CLIP features of image and prompt."

    def __init__(self, clip: ClipFeatureExtractor):
        super().__init__()
        self.clip = clip

    def score_images(self, images, prompts):
        return (self.clip.embed_images(images) * self.clip.embed_texts(prompts)).sum(1)
