"""Zero-shot accuracy: does the nearest caption have the labels of the prompt? (Radford et al., 2021, section 3.1.)"""

import torch

from sdft.evaluation.metrics.base import ImageMetric
from sdft.evaluation.metrics.clip import ClipFeatureExtractor


class ZeroShotAccuracy(ImageMetric):
    """Fraction of images whose nearest caption has the prompt's label on `axis`, or on all axes; 0..1, higher is better."""

    description = "Zero-shot accuracy: fraction of images whose nearest caption has the labels of the prompt."
    number_format = "{:.0%}"

    def __init__(self, clip: ClipFeatureExtractor, caption_labels: dict[str, dict[str, str]], axis: str | None = None):
        super().__init__()
        self.clip, self.caption_labels, self.axis = clip, caption_labels, axis
        self.captions = list(caption_labels)
        self.features = clip.embed_texts(self.captions)

    def score_images(self, images, prompts):
        nearest = (self.clip.embed_images(images) @ self.features.T).argmax(1).tolist()
        predicted = [self.get_label(self.captions[i]) for i in nearest]
        return torch.tensor([float(p == self.get_label(prompt)) for p, prompt in zip(predicted, prompts, strict=True)])

    def get_label(self, caption: str):
        """The caption's label on `axis`, or its labels on all axes."""
        labels = self.caption_labels[caption]
        return labels if self.axis is None else labels[self.axis]
