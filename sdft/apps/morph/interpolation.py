"""Interpolation between two latents, and positions with equal perceptual distances (DiffMorpher, 2023)."""

import numpy as np
from torch import Tensor

MIN_ANGLE = 1e-4  # radians; slerp is lerp below


def lerp(one: Tensor, other: Tensor, alpha: float) -> Tensor:
    return (1 - alpha) * one + alpha * other


def slerp(one: Tensor, other: Tensor, alpha: float) -> Tensor:
    """Spherical interpolation of two tensors as vectors (Shoemake, 1985): preserves equal norms."""
    cosine = (one.double() * other.double()).sum() / (one.double().norm() * other.double().norm())
    angle = cosine.clamp(-1, 1).acos()
    if angle < MIN_ANGLE:
        return lerp(one, other, alpha)
    weights = ((1 - alpha) * angle).sin() / angle.sin(), (alpha * angle).sin() / angle.sin()
    return (weights[0] * one + weights[1] * other).to(one.dtype)


def adain(latents: Tensor, one: Tensor, other: Tensor, alpha: float) -> Tensor:
    """Give `latents` `[1, 4, h, w]` per-channel mean and deviation interpolated between two others (Huang & Belongie, 2017)."""
    (mean, std), (mean_1, std_1), (mean_2, std_2) = (compute_channel_statistics(x) for x in (latents, one, other))
    return (latents - mean) / std * lerp(std_1, std_2, alpha) + lerp(mean_1, mean_2, alpha)


def compute_channel_statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel `[batch, 4, 1, 1]`."""
    return latents.mean((2, 3), keepdim=True), latents.std((2, 3), keepdim=True).clamp(min=1e-6)


def space_evenly(alphas: list[float], distances: list[float], count: int) -> list[float]:
    """`count` alphas with equal distances between neighbours, from the `distances` of neighbours in `alphas`; the ends are fixed.

    LPIPS and similar metrics are squared feature distances, which do not add up along a path; their square roots do.
    """
    lengths = np.sqrt(np.clip(np.asarray(distances, dtype=float), 0, None))
    arc_length = np.concatenate([[0.0], np.cumsum(lengths)])
    if arc_length[-1] == 0:
        return np.linspace(alphas[0], alphas[-1], count).tolist()
    spaced = np.interp(np.linspace(0, arc_length[-1], count), arc_length, alphas)
    spaced[0], spaced[-1] = alphas[0], alphas[-1]
    return spaced.tolist()
