"""Zero-shot accuracy: does the nearest caption have the labels of the prompt? (Radford et al., 2021, section 3.1.)"""

import torch

from sdft.evaluation.metrics.base import PromptMetric


class ZeroShotAccuracy(PromptMetric):
    """Fraction of images whose nearest caption has the prompt's label on `axis`, or on all axes; 0..1, higher is better.

    The dataset's evaluation spec has the labels; the config's name is not used.
    """

    description = "Zero-shot accuracy: fraction of images whose nearest caption has the labels of the prompt."
    number_format = "{:.0%}"
    axis: str | None = None

    def build(self, name, scorer, data):
        """One metric per axis of the labels, by its name, and one for all axes if there are several."""
        if data.evaluation_spec is None:
            return {}
        axes: list[str | None] = list(next(iter(data.evaluation_spec.caption_labels.values())))
        metrics = {}
        for axis in [*axes, None] if len(axes) > 1 else axes:
            name = " and ".join(axes) if axis is None else axis
            metrics |= super().build(name, scorer, data)
            metrics[name].axis = axis
        return metrics

    def setup(self, scorer, data):
        super().setup(scorer, data)
        self.caption_labels = data.evaluation_spec.caption_labels
        self.captions = list(self.caption_labels)
        self.features = scorer.embed_texts(self.captions)

    def score_images(self, images, prompts):
        nearest = (self.scorer.embed_images(images) @ self.features.T).argmax(1).tolist()
        predicted = [self.get_label(self.captions[i]) for i in nearest]
        return torch.tensor([float(p == self.get_label(prompt)) for p, prompt in zip(predicted, prompts, strict=True)])

    def get_label(self, caption: str):
        """The caption's label on `axis`, or its labels on all axes."""
        labels = self.caption_labels[caption]
        return labels if self.axis is None else labels[self.axis]
