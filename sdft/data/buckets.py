"""Aspect-ratio buckets: pictures keep their shape, and none is dropped (Anlatan, 2022)."""

import math
from functools import cache

Size = tuple[int, int]  # width, height in pixels

BUCKET_STEP = 64  # sides are multiples of it, or of what the model takes where pictures are small
MAX_ASPECT_RATIO = 4.0  # the most that one side is of the other


@cache
def list_buckets(resolution: int, unit: int) -> tuple[Size, ...]:
    """For every side that is a multiple of `unit`, the other that brings the area nearest to resolution² without passing it."""
    sides = range(unit, int(resolution * math.sqrt(MAX_ASPECT_RATIO)) + 1, unit)
    pairs = {(w, resolution**2 // w // unit * unit) for w in sides}
    pairs |= {(h, w) for w, h in pairs}
    return tuple(sorted((w, h) for w, h in pairs if unit <= min(w, h) and max(w, h) <= MAX_ASPECT_RATIO * min(w, h)))


def choose_bucket_step(resolution: int, least: int) -> int:
    """64, or less where a picture would otherwise have but few shapes; always a multiple of `least`."""
    return max(least, min(BUCKET_STEP, resolution // 8 // least * least))


def choose_bucket(size: Size, resolution: int, unit: int, upscale: float) -> Size:
    """The shape nearest to a picture's own; a smaller one where its area would be enlarged more than `upscale`² times (0: any).

    Shapes end at `unit` on a side and at 4:1, so the tiniest and the most elongated pictures may be enlarged further.
    """
    if upscale:
        enough = int(math.sqrt(size[0] * size[1]) * upscale)
        resolution = max(unit, min(resolution, enough // unit * unit))
    wanted = math.log(size[0] / size[1])
    return min(list_buckets(resolution, unit), key=lambda s: (abs(math.log(s[0] / s[1]) - wanted), -s[0] * s[1]))
