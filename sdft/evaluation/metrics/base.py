"""Metrics: a score of the images of a prompt group, most as the mean of one value per image.

The config gives a metric the arguments of its constructor, `build` copies it for each evaluation and prompt group, and `setup`
gives the copy its scorer and the images to compare with.
"""

from copy import copy
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from sdft.data.dataset import CaptionedImage, EvaluationSpec


@dataclass
class EvaluationData:
    """What the generated images of one prompt group are compared with; `images` is their number per prompt.

    `real_images` show what the prompts describe, and `captioned_images` are real images with scoring prompts as captions; control
    prompts have neither. `base_images` are those of the base model for the same prompts and seeds.
    """

    images: int = 1
    training_images: list[CaptionedImage] = field(default_factory=list)
    real_images: list[CaptionedImage] = field(default_factory=list)
    captioned_images: list[CaptionedImage] = field(default_factory=list)
    base_images: list[Image.Image] = field(default_factory=list)
    evaluation_spec: EvaluationSpec | None = None


class Metric:
    """`scorer` names the scorer that `setup` receives (see `sdft.evaluation.scorers`), None for none.

    Without that scorer the metric is left out. If `setup` raises `ScorerUnavailableError`, it is reported as missing.
    """

    higher_is_better = True
    number_format = "{:.3f}"
    description = ""  # one line, for the report
    baseline = "base"  # compared with for the verdict: "base" model, or "real" images

    def __init__(self, scorer: str | None = "clip"):
        self.scorer_name = scorer
        self.reset()

    def build(self, name: str, scorer, data: EvaluationData) -> dict[str, "Metric"]:
        """Copies of this metric that are set up, by name: one called `name`, unless the data determine others."""
        metric = copy(self)
        metric.setup(scorer, data)
        return {name: metric}

    def setup(self, scorer, data: EvaluationData) -> None:
        """Compute what all images are compared with."""
        self.scorer = scorer
        self.reset()

    def reset(self) -> None:
        """Forget the images scored so far."""
        self.collected: list[Tensor] = []

    def measure(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        """What `compute` needs of each image `[images, …]`."""
        raise NotImplementedError

    def update(self, images: list[Image.Image], prompts: list[str]) -> None:
        """Add all images of some prompts, one prompt per image."""
        if images:
            self.collected.append(self.measure(images, prompts))

    def collect(self) -> Tensor:
        """What was measured of all images since the last reset `[images, …]`; `ValueError` if there were none."""
        if not self.collected:
            raise ValueError(f"{type(self).__name__}: no images to score")
        return torch.cat(self.collected)

    def compute(self) -> Tensor:
        """The score; NaN if undefined."""
        raise NotImplementedError

    def compute_reference(self) -> float | None:
        """Score of real images against each other; None if undefined."""
        return None


class ImageMetric(Metric):
    """One value per image; their mean is the score, and their spread gives its confidence interval.

    Images without a value are NaN: excluded from the mean; both counts are reported.
    """

    def score_images(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        """One value per image `[images]`."""
        raise NotImplementedError

    def measure(self, images, prompts):
        return self.score_images(images, prompts).double()

    def compute(self) -> Tensor:
        """Mean over the images with a value; NaN if there is none."""
        return self.collect().nanmean()


class PromptMetric(ImageMetric):
    """Compares images with their prompts; the reference is the score of real images with their captions."""

    def setup(self, scorer, data):
        super().setup(scorer, data)
        self.captioned_images = data.captioned_images

    def compute_reference(self):
        if not self.captioned_images:
            return None
        images, captions = zip(*((one.image, one.caption) for one in self.captioned_images), strict=True)
        return float(torch.as_tensor(self.score_images(list(images), list(captions))).mean())


def list_images(samples: list[CaptionedImage]) -> list[Image.Image]:
    return [sample.image for sample in samples]


def mean_excluding_self(similarities: Tensor) -> Tensor:
    """Row means `[n]` of `[n, n]` pairwise similarities, without the diagonal."""
    n = len(similarities)
    return (similarities.sum(1) - similarities.diagonal()) / (n - 1)
