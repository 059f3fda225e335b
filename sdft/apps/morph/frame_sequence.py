"""Frames between two images: how smooth and how faithful they are, and a strip that compares sequences."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from sdft.evaluation.plots.image_grid import build_labeled_grid

TILE_SIZE = 128  # pixels per side in the strip
DistanceFunction = Callable[[list[Image.Image], list[Image.Image]], Tensor]  # of pairs `[pairs]`


@dataclass
class FrameSequence:
    """Frames between two original images, at the interpolation weights `alphas`.

    `distances` are perceptual distances of neighbouring frames, `endpoint_distances` those of the first and last frame to the
    originals; both are empty without a perceptual metric.
    """

    originals: list[Image.Image]
    alphas: list[float]
    frames: list[Image.Image]
    distances: list[float]
    endpoint_distances: list[float]

    def compute_scores(self) -> dict[str, float]:
        """PSNR of the first and last frame in dB; PPL, the sum of distances from one original to the other, with the endpoint
        distances; PDV, the variance of the distances of neighbouring frames; unevenness, their relative standard deviation."""
        scores = {
            "PSNR first": psnr(self.frames[0], self.originals[0]),
            "PSNR last": psnr(self.frames[-1], self.originals[1]),
        }
        if self.distances:
            steps = np.asarray(self.distances)
            scores |= {"PPL": float(steps.sum() + sum(self.endpoint_distances)), "PDV": float(steps.var())}
            scores["unevenness"] = float(steps.std() / max(steps.mean(), 1e-12))
        return scores


def compute_neighbour_distances(frames: list[Image.Image], distances: DistanceFunction) -> list[float]:
    """The perceptual distance of each frame to the next."""
    return distances(frames[:-1], frames[1:]).tolist()


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB images in dB, at most 100."""
    error = np.mean((np.asarray(one, dtype=float) - np.asarray(other, dtype=float)) ** 2)
    return min(100.0, float(10 * np.log10(255**2 / error))) if error else 100.0


def draw_comparison_strip(sequences: dict[str, FrameSequence]) -> Image.Image:
    """One row per sequence, between the original images."""
    rows = [
        (name, [shrink_to_tile(p) for p in (sequence.originals[0], *sequence.frames, sequence.originals[1])])
        for name, sequence in sequences.items()
    ]
    count = len(next(iter(sequences.values())).frames)
    return build_labeled_grid(
        rows, ["original", *[f"frame {number}" for number in range(1, count + 1)], "original"], tile=TILE_SIZE
    )


def shrink_to_tile(image: Image.Image) -> Image.Image:
    if max(image.size) <= TILE_SIZE:
        return image
    shrunk = image.copy()
    shrunk.thumbnail((TILE_SIZE, TILE_SIZE), Image.Resampling.LANCZOS)
    return shrunk
