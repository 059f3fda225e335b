"""Scorers wrap a network; feature extractors embed images as unit vectors and cache the result."""

import hashlib

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn


class ScorerUnavailableError(ValueError):
    """Weights, packages or data for a score are missing; the message says how to obtain them.

    `name` is what cannot be measured, if it is not the one metric or scorer that raised this.
    """

    def __init__(self, reason: str, name: str | None = None):
        super().__init__(reason)
        self.name = name


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids downloads; libraries that know nothing of the hub must not use the network either."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


class Scorer:
    """Moves its network to the device on use and back to the CPU in `offload()`, to leave the GPU to training."""

    name: str
    model: nn.Module

    def __init__(self, device: str = "cpu", batch_size: int = 64):
        self.device, self.batch_size = device, batch_size

    def move_to_device(self) -> nn.Module:
        return self.model.to(self.device)

    def offload(self) -> None:
        self.model.to("cpu")


class FeatureExtractor(Scorer):
    """Subclasses implement `forward_batch`."""

    def __init__(self, device: str = "cpu", batch_size: int = 64):
        super().__init__(device, batch_size)
        self.feature_cache: dict[bytes, Tensor] = {}

    def forward_batch(self, images: list[Image.Image]) -> Tensor:
        """Raw features `[images, width]` on the CPU."""
        raise NotImplementedError

    def embed_images(self, images: list[Image.Image]) -> Tensor:
        """Unit features `[images, width]`."""
        return F.normalize(self.extract_features(images), dim=1)

    def extract_features(self, images: list[Image.Image]) -> Tensor:
        """Raw features `[images, width]`, computed once per distinct image."""
        keys = [hash_image(image) for image in images]
        uncached = {key: image for key, image in zip(keys, images, strict=True) if key not in self.feature_cache}
        for batch in split_batches(list(uncached), self.batch_size):
            self.feature_cache |= dict(zip(batch, self.forward_batch([uncached[key] for key in batch]), strict=True))
        return torch.stack([self.feature_cache[key] for key in keys])


def hash_image(image: Image.Image) -> bytes:
    """Hash of size, mode and pixels."""
    return hashlib.blake2b(repr((image.size, image.mode)).encode() + image.tobytes(), digest_size=16).digest()


def split_batches(items: list, size: int):
    for start in range(0, len(items), size):
        yield items[start : start + size]
