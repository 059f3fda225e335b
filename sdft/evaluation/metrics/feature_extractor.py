"""A judge is a network; an embedder sees a picture as a unit vector, and remembers what it has seen."""

import hashlib

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn


class ScorerUnavailableError(ValueError):
    """What a metric needs is not on this machine; the message says what to fetch, and where to put it."""


class Scorer:
    """Its network lies on its device only from a question to the next rest: training has it for itself."""

    name: str
    model: nn.Module

    def __init__(self, device: str = "cpu", batch_size: int = 64):
        self.device, self.batch_size = device, batch_size

    def move_to_device(self) -> nn.Module:
        return self.model.to(self.device)

    def offload(self) -> None:
        self.model.to("cpu")


class FeatureExtractor(Scorer):
    """Subclasses say what a batch of pictures looks like to them."""

    def __init__(self, device: str = "cpu", batch_size: int = 64):
        super().__init__(device, batch_size)
        self.feature_cache: dict[bytes, Tensor] = {}

    def forward_batch(self, pictures: list[Image.Image]) -> Tensor:
        """Features `[pictures, width]` as the network gives them, on the CPU."""
        raise NotImplementedError

    def embed_images(self, pictures: list[Image.Image]) -> Tensor:
        """Unit features `[pictures, width]`."""
        return F.normalize(self.extract_features(pictures), dim=1)

    def extract_features(self, pictures: list[Image.Image]) -> Tensor:
        """Features `[pictures, width]`, of each different picture computed once."""
        keys = [hash_image(picture) for picture in pictures]
        unseen = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in self.feature_cache}
        for batch in split_batches(list(unseen), self.batch_size):
            self.feature_cache |= dict(zip(batch, self.forward_batch([unseen[key] for key in batch]), strict=True))
        return torch.stack([self.feature_cache[key] for key in keys])


def hash_image(picture: Image.Image) -> bytes:
    """What tells two pictures apart."""
    return hashlib.blake2b(repr((picture.size, picture.mode)).encode() + picture.tobytes(), digest_size=16).digest()


def split_batches(items: list, size: int):
    for start in range(0, len(items), size):
        yield items[start : start + size]
