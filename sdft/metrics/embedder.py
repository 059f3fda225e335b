"""A judge sees a picture as a unit vector; what it has seen it remembers."""

import hashlib

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


class Missing(ValueError):
    """What a metric needs is not on this machine; the message says what to fetch, and where to put it."""


class Embedder:
    """Subclasses say what a batch of pictures looks like to them."""

    name: str

    def __init__(self, device: str = "cpu", batch_size: int = 64):
        self.device, self.batch_size, self.memory = device, batch_size, {}

    def embed(self, pictures: list[Image.Image]) -> Tensor:
        """Features `[pictures, width]` as the network gives them, on the CPU."""
        raise NotImplementedError

    def images(self, pictures: list[Image.Image]) -> Tensor:
        """Unit features `[pictures, width]`."""
        return F.normalize(self.features(pictures), dim=1)

    def features(self, pictures: list[Image.Image]) -> Tensor:
        """Features `[pictures, width]`, of each different picture computed once."""
        keys = [content(picture) for picture in pictures]
        unseen = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in self.memory}
        for batch in batches(list(unseen), self.batch_size):
            self.memory |= dict(zip(batch, self.embed([unseen[key] for key in batch]), strict=True))
        return torch.stack([self.memory[key] for key in keys])


def content(picture: Image.Image) -> bytes:
    """What tells two pictures apart."""
    return hashlib.blake2b(repr((picture.size, picture.mode)).encode() + picture.tobytes(), digest_size=16).digest()


def batches(items: list, size: int):
    for start in range(0, len(items), size):
        yield items[start : start + size]
