"""Perceptual distance of two images: LPIPS (Zhang et al., 2018), or the same formula over CLIP layers."""

from itertools import combinations
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from sdft.evaluation.metrics.clip import ClipFeatureExtractor
from sdft.evaluation.metrics.feature_extractor import Scorer, ScorerUnavailableError, is_offline, split_batches

NUM_LAYERS = 4  # CLIP layers, spread evenly over the depth


class Lpips(Scorer):
    """LPIPS by torchmetrics, 0 for equal images; `net` is alex (the usual one), vgg or squeeze."""

    name = "LPIPS"

    def __init__(
        self, net: str = "alex", device: str = "cpu", batch_size: int = 32, option: str = "metrics.perceptual"
    ):
        """`option` is the option name used in error messages."""
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision import models

        super().__init__(device, batch_size)
        weights = {"alex": models.AlexNet_Weights, "vgg": models.VGG16_Weights, "squeeze": models.SqueezeNet1_1_Weights}
        if net not in weights:
            raise ValueError(f"{option}={net}: choose one of {', '.join(weights)}, or clip")
        file = Path(torch.hub.get_dir(), "checkpoints", weights[net].IMAGENET1K_V1.url.rsplit("/", 1)[1])
        try:
            if is_offline() and not file.is_file():
                raise OSError
            self.model = LearnedPerceptualImagePatchSimilarity(net, reduction="none", normalize=True)
        except OSError:
            raise ScorerUnavailableError(
                f"{option}={net}: torchvision weights {file.name} not found{' (HF_HUB_OFFLINE=1)' * is_offline()}; "
                f"download them once with network access, or copy the file to {file.parent}/"
            ) from None

    @torch.no_grad()
    def compute_distances(self, ones: list[Image.Image], others: list[Image.Image]) -> Tensor:
        """Distance of each pair `[pairs]`; images of different sizes are fitted to the smallest centre square."""
        distances, metric, sizes = [], self.move_to_device(), {image.size for image in (*ones, *others)}
        if len(sizes) > 1:
            side = min(min(size) for size in sizes)
            ones, others = (
                [ImageOps.fit(image.convert("RGB"), (side, side)) for image in images] for images in (ones, others)
            )
        for pairs in split_batches(list(zip(ones, others, strict=True)), self.batch_size):
            one, other = (
                torch.stack([to_unit_tensor(image) for image in images]).to(self.device)
                for images in zip(*pairs, strict=True)
            )
            metric.reset()
            metric.update(one, other)
            distances.append(metric.compute().reshape(-1).cpu())
        return torch.cat(distances)

    def compute_pairwise(self, images: list[Image.Image]) -> Tensor:
        """Distances of all pairs `[n, n]`."""
        pairs, table = list(combinations(range(len(images)), 2)), torch.zeros(len(images), len(images))
        if pairs:
            one, other = map(list, zip(*pairs, strict=True))
            distances = self.compute_distances([images[i] for i in one], [images[i] for i in other])
            table[one, other] = table[other, one] = distances
        return table


class ClipPerceptualDistance:
    """LPIPS with uniform weights: mean squared distance of unit-length activations over positions and layers.

    Uses four layers of a CLIP vision transformer; 0 for equal images. Meant for the embedded models, whose images
    are unlike those that AlexNet was trained on.
    """

    def __init__(self, clip: ClipFeatureExtractor):
        if not hasattr(clip.model.visual, "transformer"):
            raise ValueError(
                f"metrics.perceptual=clip: {clip.name} is not a vision transformer; choose alex, or metrics.clip=ViT-…"
            )
        self.clip, self.name = clip, f"LPIPS ({clip.name})"
        depth = len(clip.model.visual.transformer.resblocks)
        self.layers = [depth * (i + 1) // NUM_LAYERS - 1 for i in range(NUM_LAYERS)]

    @torch.no_grad()
    def extract_activations(self, images: list[Image.Image]) -> Tensor:
        """Activations `[n, values]`, scaled so that squared distances of rows are perceptual distances."""
        rows = []
        for batch in split_batches(images, self.clip.batch_size):
            pixels = torch.stack([self.clip.transform(image) for image in batch]).to(self.clip.device)
            output = self.clip.move_to_device().visual.forward_intermediates(
                pixels, indices=self.layers, intermediates_only=True
            )
            unit = [F.normalize(m, dim=1) / (m.shape[2] * m.shape[3]) ** 0.5 for m in output["image_intermediates"]]
            rows.append(torch.cat([m.flatten(1) for m in unit], 1).cpu() / len(unit) ** 0.5)
        return torch.cat(rows)

    def compute_distances(self, ones: list[Image.Image], others: list[Image.Image]) -> Tensor:
        """Distance of each pair `[pairs]`."""
        return (self.extract_activations(ones) - self.extract_activations(others)).square().sum(1)

    def compute_pairwise(self, images: list[Image.Image]) -> Tensor:
        """Distances of all pairs `[n, n]`."""
        rows = self.extract_activations(images).double()
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()


def load_embedded_perceptual(device: str = "cpu") -> ClipPerceptualDistance:
    """The perceptual distance for the embedded models."""
    return ClipPerceptualDistance(ClipFeatureExtractor("tiny-clip", device=device))


def to_unit_tensor(image: Image.Image) -> Tensor:
    """`[3, h, w]`, 0..1."""
    from torchvision.transforms.functional import pil_to_tensor

    return pil_to_tensor(image.convert("RGB")).float() / 255
