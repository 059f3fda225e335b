"""Sheets with labels on both axes."""

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


def test_every_picture_is_in_its_place_and_labels_stand_beside_them():
    colours = [["red", "lime"], ["blue", "yellow"]]
    cells = [[[Image.new("RGB", (128, 128), colour)] for colour in row] for row in colours]
    page = build_labeled_sheet(
        "title", "settings", AxisLabels("rows", ["one", "two"]), AxisLabels("columns", ["a", "b"]), cells
    )
    pixels = np.asarray(page)
    corners = {}
    for name, value in {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}.items():
        there = np.argwhere((pixels == value).all(-1))
        assert len(there) == 128 * 128
        corners[name] = tuple(there.min(0))
    assert corners["red"][0] == corners["lime"][0] < corners["blue"][0] == corners["yellow"][0]
    assert corners["red"][1] == corners["blue"][1] < corners["lime"][1] == corners["yellow"][1]
    top, left = corners["red"]
    assert (pixels[:top, left:] < 128).any() and (pixels[top:, :left] < 128).any()  # heads and names


def test_large_pages_are_made_smaller_and_small_pictures_larger():
    assert compute_cell_size((32, 32), 4, 2) == (128, 128) and compute_cell_size((512, 768), 3, 2) == (512, 768)
    width, height = compute_cell_size((512, 768), 40, 10)
    assert width * 40 <= MAX_SHEET_SIZE and abs(width / height - 512 / 768) < 0.01


def test_labels_are_cut_to_their_width():
    face = load_font(14)
    for text in ("a" * 500, "many words " * 80, "ένα δύο три " * 40, "a b"):
        lines = wrap_long_words(text, 120, face, 3)
        assert len(lines) <= 3 and all(face.getlength(line) <= 120 for line in lines)
    assert wrap_long_words("", 100, face, 3) == [] and wrap_long_words("a\nb", 100, face, 3) == ["a b"]


def test_several_prompts_are_rows_and_several_images_columns_where_nothing_else_is():
    x, y = fill_free_axes(None, None, ["a", "b"], [3, 4])
    assert (x.option, x.values, y.option, y.values) == ("seed", [3, 4], "prompt", ["a", "b"])
    mine = Axis("steps", [1], ["1"])
    assert fill_free_axes(mine, None, ["a", "b"], [3, 4])[0] is mine
    assert fill_free_axes(mine, mine, ["a", "b"], [3, 4]) == (mine, mine)
