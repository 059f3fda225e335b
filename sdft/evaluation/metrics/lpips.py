"""How different two pictures look: LPIPS (Zhang et al., 2018), or the same form over the layers of a CLIP."""

from itertools import combinations

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from sdft.evaluation.metrics.clip import ClipFeatureExtractor
from sdft.evaluation.metrics.feature_extractor import Scorer, ScorerUnavailableError, split_batches

NUM_LAYERS = 4  # of a CLIP: spread evenly over its depth


class Lpips(Scorer):
    """LPIPS by torchmetrics, 0 for equal pictures; `net` is alex (the usual one), vgg or squeeze."""

    name = "LPIPS"

    def __init__(
        self, net: str = "alex", device: str = "cpu", batch_size: int = 32, option: str = "metrics.perceptual"
    ):
        """`option` is what errors call the choice of `net`."""
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision import models

        super().__init__(device, batch_size)
        weights = {"alex": models.AlexNet_Weights, "vgg": models.VGG16_Weights, "squeeze": models.SqueezeNet1_1_Weights}
        if net not in weights:
            raise ValueError(f"{option}={net}: choose one of {', '.join(weights)}, or clip")
        try:
            self.model = LearnedPerceptualImagePatchSimilarity(net, reduction="none", normalize=True)
        except OSError:
            file = weights[net].IMAGENET1K_V1.url.rsplit("/", 1)[1]
            raise ScorerUnavailableError(
                f"{option}={net}: {file} of torchvision is not here; "
                f"fetch it once with the network on, or put it into {torch.hub.get_dir()}/checkpoints/"
            ) from None

    @torch.no_grad()
    def distances(self, ones: list[Image.Image], others: list[Image.Image]) -> Tensor:
        """`[pairs]`; of pictures of different sizes, over the middle square of the smallest."""
        found, metric, sizes = [], self.move_to_device(), {picture.size for picture in (*ones, *others)}
        if len(sizes) > 1:
            side = min(min(size) for size in sizes)
            ones, others = (
                [ImageOps.fit(p.convert("RGB"), (side, side)) for p in side_of] for side_of in (ones, others)
            )
        for pairs in split_batches(list(zip(ones, others, strict=True)), self.batch_size):
            one, other = (
                torch.stack([to_unit_tensor(picture) for picture in side]).to(self.device)
                for side in zip(*pairs, strict=True)
            )
            metric.reset()
            metric.update(one, other)
            found.append(metric.compute().reshape(-1).cpu())
        return torch.cat(found)

    def pairwise(self, pictures: list[Image.Image]) -> Tensor:
        """Every picture to every other `[n, n]`."""
        pairs, table = list(combinations(range(len(pictures)), 2)), torch.zeros(len(pictures), len(pictures))
        if pairs:
            one, other = map(list, zip(*pairs, strict=True))
            found = self.distances([pictures[i] for i in one], [pictures[i] for i in other])
            table[one, other] = table[other, one] = found
        return table


class ClipPerceptualDistance:
    """LPIPS's form with all weights equal: activations of unit length at each place, their squared distance, averaged.

    Over four layers of a CLIP's vision transformer; 0 for equal pictures. For the embedded world, which AlexNet has never seen.
    """

    def __init__(self, clip: ClipFeatureExtractor):
        if not hasattr(clip.model.visual, "transformer"):
            raise ValueError(
                f"metrics.perceptual=clip: {clip.name} is no vision transformer; choose alex, or metrics.clip=ViT-…"
            )
        self.clip, self.name = clip, f"LPIPS ({clip.name})"
        depth = len(clip.model.visual.transformer.resblocks)
        self.layers = [depth * (i + 1) // NUM_LAYERS - 1 for i in range(NUM_LAYERS)]

    @torch.no_grad()
    def maps(self, pictures: list[Image.Image]) -> Tensor:
        """`[n, values]`, scaled so that the squared Euclidean distance of two rows is the pictures' distance."""
        rows = []
        for batch in split_batches(pictures, self.clip.batch_size):
            stack = torch.stack([self.clip.transform(picture) for picture in batch]).to(self.clip.device)
            given = self.clip.move_to_device().visual.forward_intermediates(
                stack, indices=self.layers, intermediates_only=True
            )
            unit = [F.normalize(m, dim=1) / (m.shape[2] * m.shape[3]) ** 0.5 for m in given["image_intermediates"]]
            rows.append(torch.cat([m.flatten(1) for m in unit], 1).cpu() / len(unit) ** 0.5)
        return torch.cat(rows)

    def distances(self, ones: list[Image.Image], others: list[Image.Image]) -> Tensor:
        return (self.maps(ones) - self.maps(others)).square().sum(1)

    def pairwise(self, pictures: list[Image.Image]) -> Tensor:
        rows = self.maps(pictures).double()
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()


def load_embedded_perceptual(device: str = "cpu") -> ClipPerceptualDistance:
    """The eye of the embedded world."""
    return ClipPerceptualDistance(ClipFeatureExtractor("tiny-clip", device=device))


def to_unit_tensor(picture: Image.Image) -> Tensor:
    """`[3, h, w]`, 0..1."""
    from torchvision.transforms.functional import pil_to_tensor

    return pil_to_tensor(picture.convert("RGB")).float() / 255
