"""The embedded Stable Diffusion XL has learned what its geometry inputs mean."""

import numpy as np

from sdft.models.embedded import TINY_XL
from sdft.models.loading import load_stable_diffusion
from sdft.models.sampling import Sampling

PROMPTS = ["a handwritten three in black ink on white paper", "a handwritten zero in red ink on cream paper"]
MAX_BYTES = 8_000_000


def measure_ink_centre(image) -> tuple[float, float]:
    """Mean x and y of the ink, in pixels."""
    ink = 1 - np.asarray(image.convert("L"), dtype=float) / 255
    ink = np.clip(ink - np.median(ink) - 0.2, 0, None)
    ys, xs = np.mgrid[: ink.shape[0], : ink.shape[1]]
    return float((ink * xs).sum() / ink.sum()), float((ink * ys).sum() / ink.sum())


def test_the_place_of_the_crop_moves_the_digit():
    """In an image of 56 x 32 px the digit is at x = 28: at the right of a crop from the left, and the other way round."""
    model = load_stable_diffusion("tiny-xl")
    options = {"steps": 10, "guidance_scale": 1.5, "images": 4, "batch_size": 8}
    centres = {}
    for name, geometry in {
        "whole": {},
        "left": {"original_size": [32, 56], "crops_coords_top_left": [0, 2]},
        "right": {"original_size": [32, 56], "crops_coords_top_left": [0, 22]},
        "top": {"original_size": [56, 32], "crops_coords_top_left": [2, 0]},
    }.items():
        images = Sampling(**options, **geometry)(model, PROMPTS, 32)
        centres[name] = np.mean([measure_ink_centre(image) for image in images], axis=0)
    assert np.abs(centres["whole"] - 15.5).max() < 2
    assert centres["left"][0] > 20 and centres["right"][0] < 11 and abs(centres["left"][1] - 15.5) < 2
    assert centres["top"][1] > 20 and abs(centres["top"][0] - 15.5) < 2


def test_the_embedded_model_is_small():
    assert sum(file.stat().st_size for file in TINY_XL.rglob("*") if file.is_file()) < MAX_BYTES
