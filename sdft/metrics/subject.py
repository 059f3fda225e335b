"""CLIP-I: does the picture look like the training pictures? (Ruiz et al., 2023, section 4.2.)"""

import torch
from PIL import Image
from torchmetrics import Metric

from sdft.metrics.clip import Clip


class SubjectScore(Metric):
    """Mean cosine of CLIP features over all (generated, reference) pairs, -1..1, higher is more alike."""

    higher_is_better = True
    form = "{:.3f}"

    def __init__(self, clip: Clip, references: list[Image.Image]):
        super().__init__(sync_on_compute=False)  # the first process alone evaluates
        self.clip, self.references = clip, clip.images(references)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, pictures: list[Image.Image], prompts: list[str]) -> None:
        self.total += (self.clip.images(pictures) @ self.references.T).mean(1).sum()
        self.count += len(pictures)

    def compute(self) -> torch.Tensor:
        if not self.count:
            raise ValueError("CLIP-I of no pictures")
        return self.total / self.count

    def real_vs_real(self) -> float:
        """The same mean among the references, without pairs of a picture with itself: what to compare with."""
        n = len(self.references)
        assert n > 1, "one picture has nothing to be compared with"
        return float(((self.references @ self.references.T).sum() - n) / (n * (n - 1)))
