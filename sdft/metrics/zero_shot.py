"""Zero-shot accuracy: of all captions, is the one nearest to the picture right? (Radford et al., 2021, section 3.1.)"""

import torch
from PIL import Image
from torchmetrics import Metric

from sdft.metrics.clip import Clip


class ZeroShot(Metric):
    """Share of pictures whose nearest caption says on `axis`, or on all of them, what the prompt says; 0..1, higher is better."""

    higher_is_better = True
    form = "{:.0%}"

    def __init__(self, clip: Clip, answers: dict[str, dict[str, str]], axis: str | None = None):
        super().__init__(sync_on_compute=False)  # the first process alone evaluates
        self.clip, self.answers, self.axis = clip, answers, axis
        self.captions = list(answers)
        self.features = clip.texts(self.captions)
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, pictures: list[Image.Image], prompts: list[str]) -> None:
        nearest = (self.clip.images(pictures) @ self.features.T).argmax(1).tolist()
        said = [self.says(self.captions[i]) for i in nearest]
        asked = [self.says(prompt) for prompt in prompts]
        self.right += sum(s == a for s, a in zip(said, asked, strict=True))
        self.count += len(pictures)

    def says(self, caption: str):
        answer = self.answers[caption]
        return answer if self.axis is None else answer[self.axis]

    def compute(self) -> torch.Tensor:
        if not self.count:
            raise ValueError(f"{self.axis} accuracy of no pictures")
        return self.right / self.count
