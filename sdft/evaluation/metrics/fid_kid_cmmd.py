"""How far generated pictures, all together, are from real ones: CMMD, and FID and KID over the features of any feature_extractor.

These say something about sets: of few pictures FID is far too high, and only scores of one feature_extractor and one number of
pictures compare.
"""

import warnings

import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics import Metric

from sdft.evaluation.metrics.feature_extractor import FeatureExtractor

CMMD_SIGMA, DISTANCE_SCALE = 10.0, 1000.0  # of CMMD's paper


class DistributionMetric(Metric):
    """A distance of two sets of features, lower is better; NaN when one of them has fewer than `least` pictures."""

    higher_is_better = False
    number_format, least = "{:.2f}", 2
    what, against = "How far are all pictures together from real ones? Real: one half of those from the other.", "base"

    def __init__(self, feature_extractor: FeatureExtractor, real: list[Image.Image]):
        super().__init__(sync_on_compute=False)  # the first process alone evaluates
        self.feature_extractor, self.real = feature_extractor, self.seen(feature_extractor, real)
        self.add_state("generated_features", [], dist_reduce_fx="cat")

    unit = False  # features of unit length, or as the network gives them

    def seen(self, feature_extractor: FeatureExtractor, pictures: list[Image.Image]) -> Tensor:
        return feature_extractor.embed_images(pictures) if self.unit else feature_extractor.extract_features(pictures)

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """`[n, width]` against `[m, width]`, both at least `least`."""
        raise NotImplementedError

    def update(self, pictures: list[Image.Image], prompts: list[str]) -> None:
        if pictures:
            self.generated_features.append(self.seen(self.feature_extractor, pictures))

    def compute(self) -> Tensor:
        if not self.generated_features:
            raise ValueError(f"{type(self).__name__} of no pictures")
        generated_features = torch.cat(self.generated_features)
        return (
            self.distance(self.real, generated_features)
            if min(len(self.real), len(generated_features)) >= self.least
            else torch.tensor(torch.nan)
        )

    def compute_reference(self) -> float | None:
        """One half of the real pictures against the other."""
        if len(self.real) < 4:
            return None
        return float(self.distance(self.real[::2], self.real[1::2]))


class CMMD(DistributionMetric):
    """1000 times the squared maximum mean discrepancy of unit features under exp(-|x - y|^2 / 2 sigma^2) (Jayasumana, 2024)."""

    unit, least = True, 1

    def distance(self, one, other):
        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return (-torch.cdist(a.double(), b.double()).square() / (2 * CMMD_SIGMA**2)).exp().mean()

        return DISTANCE_SCALE * (kernel(one, one) + kernel(other, other) - 2 * kernel(one, other))


class FID(DistributionMetric):
    """|mu - mu'|^2 + Tr(S + S' - 2 (S S')^1/2) (Heusel et al., 2017), by torchmetrics; over a CLIP it is CLIP-FID."""

    def distance(self, one, other):
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(PassthroughFeatures(one.shape[1]))
        metric.update(one.double(), real=True)
        metric.update(other.double(), real=False)
        return metric.compute()


class KID(DistributionMetric):
    """1000 times the squared discrepancy under (x . y / width + 1)^3, unbiased (Binkowski et al., 2018), by torchmetrics.

    The mean over random subsets of at most 100; the same ones each time.
    """

    def distance(self, one, other):
        from torchmetrics.image.kid import KernelInceptionDistance

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it keeps all features, which is what it is given
            metric = KernelInceptionDistance(
                PassthroughFeatures(one.shape[1]), subset_size=min(100, len(one), len(other))
            )
        metric.update(one, real=True)
        metric.update(other, real=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return DISTANCE_SCALE * metric.compute()[0]


class PassthroughFeatures(nn.Module):
    """For torchmetrics, which would otherwise compute features itself."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features
