"""Grids and sheets of images with labels."""

import numpy as np
from PIL import Image

from sdft.apps.generate.axes import Axis, fill_free_axes
from sdft.evaluation.plots.image_grid import (
    MAX_SHEET_SIZE,
    AxisLabels,
    build_labeled_sheet,
    compute_cell_size,
    load_font,
    wrap_long_words,
)


def test_images_are_in_their_cells_next_to_their_labels():
    colours = [["red", "lime"], ["blue", "yellow"]]
    cells = [[[Image.new("RGB", (128, 128), colour)] for colour in row] for row in colours]
    page = build_labeled_sheet(
        "title", "settings", AxisLabels("rows", ["one", "two"]), AxisLabels("columns", ["a", "b"]), cells
    )
    pixels = np.asarray(page)
    corners = {}
    for name, value in {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}.items():
        positions = np.argwhere((pixels == value).all(-1))
        assert len(positions) == 128 * 128
        corners[name] = tuple(positions.min(0))
    assert corners["red"][0] == corners["lime"][0] < corners["blue"][0] == corners["yellow"][0]
    assert corners["red"][1] == corners["blue"][1] < corners["lime"][1] == corners["yellow"][1]
    top, left = corners["red"]
    assert (pixels[:top, left:] < 128).any() and (pixels[top:, :left] < 128).any()  # column and row labels


def test_large_sheets_are_downscaled_and_small_images_enlarged():
    assert compute_cell_size((32, 32), 4, 2) == (128, 128) and compute_cell_size((512, 768), 3, 2) == (512, 768)
    width, height = compute_cell_size((512, 768), 40, 10)
    assert width * 40 <= MAX_SHEET_SIZE and abs(width / height - 512 / 768) < 0.01


def test_labels_are_wrapped_to_the_width():
    font = load_font(14)
    for text in ("a" * 500, "many words " * 80, "ένα δύο три " * 40, "a b"):
        lines = wrap_long_words(text, 120, font, 3)
        assert len(lines) <= 3 and all(font.getlength(line) <= 120 for line in lines)
    assert wrap_long_words("", 100, font, 3) == [] and wrap_long_words("a\nb", 100, font, 3) == ["a b"]


def test_free_axes_default_to_prompts_and_seeds():
    x, y = fill_free_axes(None, None, ["a", "b"], [3, 4])
    assert (x.option, x.values, y.option, y.values) == ("seed", [3, 4], "prompt", ["a", "b"])
    axis = Axis("steps", [1], ["1"])
    assert fill_free_axes(axis, None, ["a", "b"], [3, 4])[0] is axis
    assert fill_free_axes(axis, axis, ["a", "b"], [3, 4]) == (axis, axis)
