"""Pictures side by side on a sheet, with labels."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MAX_SHEET_SIZE = 6000  # pixels on a side of a sheet
MIN_CELL_SIZE = 32  # and of a picture in it
TEXT_COLOR, MUTED_COLOR = "#1a1a1a", "#6b6b6b"


def tile_images(rows: list[list[Image.Image]], gap: int = 2) -> Image.Image:
    """Rows of equal pictures on white."""
    width, height = rows[0][0].size
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (columns * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (width + gap), y * (height + gap)))
    return sheet


def build_labeled_grid(rows: list[tuple[str, list[Image.Image]]], columns: list[str], tile: int = 128) -> Image.Image:
    """A grid with a caption over each column and a label before each row; small pictures are enlarged to `tile` pixels."""
    size = rows[0][1][0].width
    factor = max(1, tile // size)
    tiles = [
        [p.resize((p.width * factor, p.height * factor), Image.Resampling.LANCZOS) for p in row] for _, row in rows
    ]
    sheet, letters = tile_images(tiles, gap=4), load_font(12)
    edge, high = size * factor, rows[0][1][0].height * factor
    left = 12 + max(int(letters.getlength(label)) for label, _ in rows)
    heads = [wrap_text(text, edge, letters) for text in columns]
    top = 10 + 16 * max((len(lines) for lines in heads), default=0)
    page = Image.new("RGB", (left + sheet.width + 4, top + sheet.height + 4), "white")
    page.paste(sheet, (left, top))
    draw = ImageDraw.Draw(page)
    for x, lines in enumerate(heads):
        draw.text((left + x * (edge + 4), 4), "\n".join(lines), "black", letters)
    for y, (label, _) in enumerate(rows):
        draw.text((6, top + y * (high + 4) + high // 2 - 8), label, "black", letters)
    return page


def wrap_text(text: str, width: int, font, most: int = 4) -> list[str]:
    """Lines of at most `width` pixels, and at most `most` of them."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines[:most] if len(lines) <= most else [*lines[: most - 1], lines[most - 1] + " …"]


@dataclass
class AxisLabels:
    """What rows or columns are called, below their `title`."""

    title: str
    names: list[str]


def build_labeled_sheet(
    title: str, settings: str, rows: AxisLabels, columns: AxisLabels, cells: list[list[list[Image.Image]]]
) -> Image.Image:
    """A page for looking at: title and settings over a grid with labels on both axes; a cell's pictures stand side by side.

    Small pictures are enlarged to 128 pixels and large ones made smaller, so that the page stays within `LARGEST`.
    """
    images, first = max(len(cell) for row in cells for cell in row), cells[0][0][0]
    width, height = compute_cell_size(first.size, len(cells[0]) * images, len(cells))
    gap, edge = 6, images * (width + 2) - 2
    plain, bold = load_font(14), load_font(14, bold=True)
    names = [wrap_long_words(name, 240, plain, max(1, height // 18)) for name in rows.names]
    heads = [wrap_long_words(name, max(edge, 60), plain, 4) for name in columns.names]
    left = max([plain.getlength(line) for lines in names for line in lines] + [bold.getlength(rows.title)])
    left = 16 + (int(left) + 12 if left else 0)
    page_width = max(left + len(cells[0]) * (max(edge, 60) + gap) + 10, 360)
    told = [(bold, TEXT_COLOR, line) for line in wrap_long_words(title, page_width - 32, bold, 3)]
    told += [(plain, MUTED_COLOR, line) for line in wrap_long_words(settings, page_width - 32, plain, 4)]
    under = 14 + 20 * len(told) + 8
    top = under + (22 if columns.title or rows.title else 0) + 18 * max(map(len, heads), default=0) + 4
    page = Image.new("RGB", (page_width, top + len(cells) * (height + gap) + 10), "white")
    draw = ImageDraw.Draw(page)
    for number, (face, colour, line) in enumerate(told):
        draw.text((16, 12 + 20 * number), line, colour, face)
    draw.text((16, top - 26), rows.title, TEXT_COLOR, bold)
    draw.text((left, under), columns.title, TEXT_COLOR, bold)
    for x, lines in enumerate(heads):
        for number, line in enumerate(lines):
            middle = left + x * (max(edge, 60) + gap) + (max(edge, 60) - plain.getlength(line)) / 2
            draw.text((middle, top - 22 - 18 * (len(lines) - 1 - number)), line, MUTED_COLOR, plain)
    for y, row in enumerate(cells):
        start = top + y * (height + gap)
        for number, line in enumerate(names[y]):
            draw.text((16, start + height / 2 - 9 * len(names[y]) + 18 * number), line, MUTED_COLOR, plain)
        for x, cell in enumerate(row):
            for number, picture in enumerate(cell):
                small = picture.resize((width, height), Image.Resampling.LANCZOS)
                page.paste(small, (left + x * (max(edge, 60) + gap) + number * (width + 2), start))
    return page


def compute_cell_size(size: tuple[int, int], across: int, down: int) -> tuple[int, int]:
    """Width and height of a picture on a page with so many."""
    factor = max(1, 128 // max(size))
    factor = min(factor, MAX_SHEET_SIZE / (size[0] * across), MAX_SHEET_SIZE / (size[1] * down))
    factor = max(factor, MIN_CELL_SIZE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def load_font(size: int, bold: bool = False):
    """Letters of more languages than Pillow's own has, which come with matplotlib."""
    (home,) = find_spec("matplotlib").submodule_search_locations
    return ImageFont.truetype(Path(home) / f"mpl-data/fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf", size)


def wrap_long_words(text: str, width: int, face, most: int) -> list[str]:
    """As `wrap`, and words that are too long are parted."""
    words = []
    for word in text.split():
        while face.getlength(word) > width and len(word) > 1:
            cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or face.getlength(word[:n]) <= width)
            words.append(word[:cut])
            word = word[cut:]
        words.append(word)
    lines = wrap_text(" ".join(words), width, face, most)
    while len(lines[-1]) > 2 and lines[-1].endswith("…") and face.getlength(lines[-1]) > width:
        lines[-1] = lines[-1][:-2].rstrip() + "…"
    return lines if lines != [""] else []
