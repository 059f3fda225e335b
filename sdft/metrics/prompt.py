"""CLIP-T: does the picture match its prompt? (Hessel et al., 2021; DreamBooth's CLIP-T is the plain cosine.)"""

import torch
from PIL import Image
from torchmetrics import Metric

from sdft.metrics.clip import Clip


class PromptScore(Metric):
    """Mean cosine of a picture's and its prompt's CLIP features, -1..1, higher is better."""

    higher_is_better = True
    form = "{:.3f}"

    def __init__(self, clip: Clip):
        super().__init__(sync_on_compute=False)  # the first process alone evaluates
        self.clip = clip
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, pictures: list[Image.Image], prompts: list[str]) -> None:
        cosines = (self.clip.images(pictures) * self.clip.texts(prompts)).sum(1)
        self.total += cosines.sum()
        self.count += len(pictures)

    def compute(self) -> torch.Tensor:
        if not self.count:
            raise ValueError("CLIP-T of no pictures")
        return self.total / self.count
