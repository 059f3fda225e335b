"""Sheets with labels on both axes."""

import numpy as np
from PIL import Image

from sdft.apps.generate.axes import Axis, free
from sdft.evaluation.plots.image_grid import LARGEST, Labels, fitted, font, lines_of, sheet


def test_every_picture_is_in_its_place_and_labels_stand_beside_them():
    colours = [["red", "lime"], ["blue", "yellow"]]
    cells = [[[Image.new("RGB", (128, 128), colour)] for colour in row] for row in colours]
    page = sheet("title", "settings", Labels("rows", ["one", "two"]), Labels("columns", ["a", "b"]), cells)
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
    assert fitted((32, 32), 4, 2) == (128, 128) and fitted((512, 768), 3, 2) == (512, 768)
    width, height = fitted((512, 768), 40, 10)
    assert width * 40 <= LARGEST and abs(width / height - 512 / 768) < 0.01


def test_labels_are_cut_to_their_width():
    face = font(14)
    for text in ("a" * 500, "many words " * 80, "ένα δύο три " * 40, "a b"):
        lines = lines_of(text, 120, face, 3)
        assert len(lines) <= 3 and all(face.getlength(line) <= 120 for line in lines)
    assert lines_of("", 100, face, 3) == [] and lines_of("a\nb", 100, face, 3) == ["a b"]


def test_several_prompts_are_rows_and_several_images_columns_where_nothing_else_is():
    x, y = free(None, None, ["a", "b"], [3, 4])
    assert (x.word, x.values, y.word, y.values) == ("seed", [3, 4], "prompt", ["a", "b"])
    mine = Axis("steps", [1], ["1"])
    assert free(mine, None, ["a", "b"], [3, 4])[0] is mine
    assert free(mine, mine, ["a", "b"], [3, 4]) == (mine, mine)
