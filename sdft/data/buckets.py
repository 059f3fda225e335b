"""Aspect-ratio buckets: images keep their shape, and none is dropped (Anlatan, 2022)."""

import math
from functools import cache

Size = tuple[int, int]  # width, height in pixels

BUCKET_STEP = 64  # bucket sides are multiples of this; smaller resolutions use a smaller step
MAX_ASPECT_RATIO = 4.0  # longer side / shorter side


@cache
def list_buckets(resolution: int, unit: int) -> tuple[Size, ...]:
    """For each side that is a multiple of `unit`, the other side with the largest area of at most resolution²."""
    sides = range(unit, int(resolution * math.sqrt(MAX_ASPECT_RATIO)) + 1, unit)
    pairs = {(w, resolution**2 // w // unit * unit) for w in sides}
    pairs |= {(h, w) for w, h in pairs}
    return tuple(sorted((w, h) for w, h in pairs if unit <= min(w, h) and max(w, h) <= MAX_ASPECT_RATIO * min(w, h)))


def choose_bucket_step(resolution: int, unit: int) -> int:
    """Return 64, or less if that gives too few buckets; always a multiple of `unit`."""
    return max(unit, min(BUCKET_STEP, resolution // 8 // unit * unit))


def choose_bucket(size: Size, resolution: int, unit: int, max_upscale: float) -> Size:
    """Return the bucket with the aspect ratio nearest to `size`, enlarging the area at most `max_upscale`² times (0: unlimited).

    Sides are at least `unit` and ratios at most 4:1, so very small and very elongated images may be enlarged further.
    """
    if max_upscale:
        largest = int(math.sqrt(size[0] * size[1]) * max_upscale)
        resolution = max(unit, min(resolution, largest // unit * unit))
    log_ratio = math.log(size[0] / size[1])
    return min(list_buckets(resolution, unit), key=lambda s: (abs(math.log(s[0] / s[1]) - log_ratio), -s[0] * s[1]))
