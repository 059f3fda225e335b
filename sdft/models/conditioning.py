"""What a network is conditioned on; caches, losses and samplers hand it through without looking inside."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

FULL_IMAGE = (0, 0)  # crop position of an image that is not cropped


@dataclass
class Conditioning:
    """One row per image in every tensor. A model defines which tensors there are, and `model.predict` reads them.

    `text`: outputs of the text encoders for the captions; cached per caption, and replaced by those of the empty caption.
    `image`: facts of the images, such as their sizes; drawn per sample, never cached with the text.
    """

    text: dict[str, Tensor]
    image: dict[str, Tensor] = field(default_factory=dict)

    def replace_text(self, text: dict[str, Tensor]) -> "Conditioning":
        """The same images with the text of one caption, such as the empty one, whose tensors are `[1, …]`."""
        text = {name: text[name].to(tensor).expand_as(tensor) for name, tensor in self.text.items()}
        return Conditioning(text, self.image)

    def join(self, other: "Conditioning") -> "Conditioning":
        """The rows of both, for one prediction of `[2 * batch, …]`, as in classifier-free guidance."""
        return Conditioning(concatenate(self.text, other.text), concatenate(self.image, other.image))

    def interpolate(self, other: "Conditioning", weight: float) -> "Conditioning":
        """Text tensors between the two; `image` is that of the first."""
        text = {name: (1 - weight) * tensor + weight * other.text[name] for name, tensor in self.text.items()}
        return Conditioning(text, self.image)


def concatenate(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([tensor, second[name]]) for name, tensor in first.items()}


def describe_geometry(
    original: tuple[int, int], crop: tuple[int, int] = FULL_IMAGE, target: tuple[int, int] | None = None
) -> Tensor:
    """`[6]`, in pixels: original height and width, top and left of the crop in the resized image, its height and width.

    `original` and `target` (default: as `original`) are (width, height), `crop` is (left, top). The order is that of SDXL
    (Podell et al., 2023).
    """
    target = target or original
    return torch.tensor([*original[::-1], *crop[::-1], *target[::-1]], dtype=torch.float32)
