"""CLIP-T: does the image match its prompt? (Hessel et al., 2021; DreamBooth's CLIP-T is the plain cosine.)"""

from sdft.evaluation.metrics.base import PromptMetric


class ClipT(PromptMetric):
    """Cosine of the CLIP features of image and prompt, -1..1, higher is better."""

    description = "Prompt fidelity: cosine of the CLIP features of image and prompt."

    def score_images(self, images, prompts):
        return (self.scorer.embed_images(images) * self.scorer.embed_texts(prompts)).sum(1)
