"""Distances between the generated and the real image distribution: CMMD, and FID and KID over any feature extractor.

With few images FID is strongly biased upwards; scores are comparable only for the same feature extractor and number of images.
"""

import warnings

import torch
from PIL import Image
from torch import Tensor, nn

from sdft.evaluation.metrics.base import EvaluationData, Metric, list_images
from sdft.evaluation.metrics.feature_extractor import ScorerUnavailableError

CMMD_SIGMA, DISTANCE_SCALE = 10.0, 1000.0  # from the CMMD paper


class DistributionMetric(Metric):
    """Distance between two sets of features, lower is better; NaN if one has fewer than `min_images` images.

    The scorer is a feature extractor.
    """

    higher_is_better = False
    number_format, min_images = "{:.2f}", 2
    description = "Distance between all images and real ones. Real: between two halves of the real images."
    normalize_features = False  # unit length, or raw network output

    def setup(self, scorer, data):
        super().setup(scorer, data)
        if not (references := self.select_references(data)):
            raise ScorerUnavailableError("no real images to compare with")
        self.real_features = self.measure(references, [])

    def select_references(self, data: EvaluationData) -> list[Image.Image]:
        """The images to compare with."""
        return list_images(data.real_images)

    def measure(self, images, prompts):
        """Features `[images, width]`."""
        return self.scorer.embed_images(images) if self.normalize_features else self.scorer.extract_features(images)

    def compute_distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Distance of `[n, width]` and `[m, width]`, where n and m are at least `min_images`."""
        raise NotImplementedError

    def compute(self):
        generated_features = self.collect()
        if min(len(self.real_features), len(generated_features)) < self.min_images:
            return torch.tensor(torch.nan)
        return self.compute_distance(self.real_features, generated_features)

    def compute_reference(self):
        """Distance between two halves of the real images; None with fewer than four."""
        if len(self.real_features) < 4:
            return None
        return float(self.compute_distance(self.real_features[::2], self.real_features[1::2]))


class CMMD(DistributionMetric):
    """1000 times the squared maximum mean discrepancy of unit features under exp(-|x - y|^2 / 2 sigma^2) (Jayasumana, 2024)."""

    normalize_features, min_images = True, 1

    def compute_distance(self, one, other):
        def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
            return (-torch.cdist(a.double(), b.double()).square() / (2 * CMMD_SIGMA**2)).exp().mean()

        return DISTANCE_SCALE * (mean_kernel(one, one) + mean_kernel(other, other) - 2 * mean_kernel(one, other))


class FID(DistributionMetric):
    """|mu - mu'|^2 + Tr(S + S' - 2 (S S')^1/2) (Heusel et al., 2017), by torchmetrics; with CLIP features this is CLIP-FID."""

    def compute_distance(self, one, other):
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(PassthroughFeatures(one.shape[1]))
        metric.update(one.double(), real=True)
        metric.update(other.double(), real=False)
        return metric.compute()


class KID(DistributionMetric):
    """1000 times the squared discrepancy under (x . y / width + 1)^3, unbiased (Binkowski et al., 2018), by torchmetrics.

    Mean over seeded random subsets of at most 100.
    """

    def compute_distance(self, one, other):
        from torchmetrics.image.kid import KernelInceptionDistance

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchmetrics warns that it stores all features, which is intended
            metric = KernelInceptionDistance(
                PassthroughFeatures(one.shape[1]), subset_size=min(100, len(one), len(other))
            )
        metric.update(one, real=True)
        metric.update(other, real=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return DISTANCE_SCALE * metric.compute()[0]


class PassthroughFeatures(nn.Module):
    """Identity feature network, so that torchmetrics accepts precomputed features."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features
