"""Zero-shot accuracy: of all captions, is the one nearest to the picture right? (Radford et al., 2021, section 3.1.)"""

import torch

from sdft.evaluation.metrics.base import ImageMetric
from sdft.evaluation.metrics.clip import ClipFeatureExtractor


class ZeroShotAccuracy(ImageMetric):
    """Share of pictures whose nearest caption says on `axis`, or on all of them, what the prompt says; 0..1, higher is better."""

    what = "Share of pictures whose nearest caption, of all there are, says what was asked."
    number_format = "{:.0%}"

    def __init__(self, clip: ClipFeatureExtractor, answers: dict[str, dict[str, str]], axis: str | None = None):
        super().__init__()
        self.clip, self.answers, self.axis = clip, answers, axis
        self.captions = list(answers)
        self.features = clip.embed_texts(self.captions)

    def score_images(self, pictures, prompts):
        nearest = (self.clip.embed_images(pictures) @ self.features.T).argmax(1).tolist()
        said = [self.says(self.captions[i]) for i in nearest]
        return torch.tensor([float(s == self.says(p)) for s, p in zip(said, prompts, strict=True)])

    def says(self, caption: str):
        answer = self.answers[caption]
        return answer if self.axis is None else answer[self.axis]
