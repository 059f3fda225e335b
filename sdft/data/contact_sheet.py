"""Contact sheet of training images, drawn from the crops that are encoded anyway, and cached by content."""

import hashlib
from collections import defaultdict
from pathlib import Path

from PIL import Image
from torch import Tensor

from sdft.data.buckets import Size
from sdft.data.dataset import ImageDataset
from sdft.data.images import decode_image, pixels_to_image, resize_and_crop
from sdft.runs.files import write_cache_file

SHEET_CACHE_DIR = Path("outputs/cache/contact_sheets")
MAX_TILES, TILE_HEIGHT = 60, 96  # height in pixels


class ContactSheet:
    """Some images of each training size, the most common size first. `sizes` has one entry per image of `source`."""

    def __init__(self, source: ImageDataset, sizes: list[Size]):
        self.source = source
        self.tiles: dict[tuple[int, Size], Image.Image | None] = dict.fromkeys(select_tiles(sizes))

    def __getstate__(self):
        return self.__dict__ | {"tiles": dict.fromkeys(self.tiles)}  # workers draw no sheet

    def add(self, index: int, size: Size, pixels: Tensor) -> None:
        """Keep a crop `[3, height, width]`, -1..1, if the sheet shows it."""
        if (index, size) in self.tiles:
            self.tiles[index, size] = draw_tile(pixels)

    def draw(self) -> Image.Image:
        """The sheet; decodes no image if an earlier run has drawn the same sheet."""
        contents = [f"{self.source.digest(index)} {size}\n" for index, size in self.tiles]
        file = SHEET_CACHE_DIR / f"{hashlib.sha256(''.join(contents).encode()).hexdigest()[:32]}.png"
        try:
            return decode_image(file)
        except ValueError:  # missing or damaged
            sheet = arrange_tiles([tile or self.load_tile(*position) for position, tile in self.tiles.items()])
            write_cache_file(file, lambda path: sheet.save(path, format="PNG"))
            return sheet

    def load_tile(self, index: int, size: Size) -> Image.Image:
        return draw_tile(resize_and_crop(self.source.load_image(index, size).image, size))


def select_tiles(sizes: list[Size]) -> list[tuple[int, Size]]:
    """Evenly spaced images of each size, as (index, size)."""
    by_size = defaultdict(list)
    for index, size in enumerate(sizes):
        by_size[size].append(index)
    per_size = max(1, MAX_TILES // len(by_size))
    tiles = []
    for size, indices in sorted(by_size.items(), key=lambda item: -len(item[1])):
        tiles += [(index, size) for index in indices[:: max(1, len(indices) // per_size)][:per_size]]
    return tiles[:MAX_TILES]


def draw_tile(pixels: Tensor) -> Image.Image:
    """Scale a crop `[3, height, width]`, -1..1, to `TILE_HEIGHT`."""
    image = pixels_to_image(pixels)
    tile_size = (max(1, round(image.width * TILE_HEIGHT / image.height)), TILE_HEIGHT)
    return pixels_to_image(resize_and_crop(image, tile_size))


def arrange_tiles(tiles: list[Image.Image], width: int = 1200, gap: int = 4) -> Image.Image:
    """Paste tiles of height `TILE_HEIGHT` in rows on white."""
    positions, x, y = [], gap, gap
    for tile in tiles:
        if x + tile.width + gap > width and x > gap:
            x, y = gap, y + TILE_HEIGHT + gap
        positions.append((x, y))
        x += tile.width + gap
    sheet = Image.new("RGB", (width, y + TILE_HEIGHT + gap), "white")
    for position, tile in zip(positions, tiles, strict=True):
        sheet.paste(tile, position)
    return sheet
