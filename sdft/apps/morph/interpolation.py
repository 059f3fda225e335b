"""What lies between two latents, and how far apart alphas of the way have to be to look equally far (DiffMorpher, 2023)."""

import numpy as np
from torch import Tensor

MIN_ANGLE = 1e-4  # radians, below which an arc is a line


def lerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    return (1 - share) * one + share * other


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Along the arc between two tensors seen as vectors (Shoemake, 1985): equal norms are kept on the whole way."""
    cosine = (one.double() * other.double()).sum() / (one.double().norm() * other.double().norm())
    angle = cosine.clamp(-1, 1).acos()
    if angle < MIN_ANGLE:
        return lerp(one, other, share)
    weights = ((1 - share) * angle).sin() / angle.sin(), (share * angle).sin() / angle.sin()
    return (weights[0] * one + weights[1] * other).to(one.dtype)


def adain(latents: Tensor, one: Tensor, other: Tensor, share: float) -> Tensor:
    """`latents` `[1, 4, h, w]` with each channel's mean and deviation between those of two others (Huang & Belongie, 2017)."""
    (mean, std), (mean_1, std_1), (mean_2, std_2) = (compute_channel_statistics(x) for x in (latents, one, other))
    return (latents - mean) / std * lerp(std_1, std_2, share) + lerp(mean_1, mean_2, share)


def compute_channel_statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel `[batch, 4, 1, 1]`."""
    return latents.mean((2, 3), keepdim=True), latents.std((2, 3), keepdim=True).clamp(min=1e-6)


def space_evenly(alphas: list[float], distances: list[float], count: int) -> list[float]:
    """`count` alphas between which equally much changes, by the `distances` of neighbours in `alphas`; the ends stay.

    LPIPS and its like are squared distances of features, which do not add up along a path; their roots do, and are its length.
    """
    lengths = np.sqrt(np.clip(np.asarray(distances, dtype=float), 0, None))
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    if along[-1] == 0:
        return np.linspace(alphas[0], alphas[-1], count).tolist()
    found = np.interp(np.linspace(0, along[-1], count), along, alphas)
    found[0], found[-1] = alphas[0], alphas[-1]
    return found.tolist()
