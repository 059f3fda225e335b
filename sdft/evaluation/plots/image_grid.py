"""Grids and sheets of images with labels."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MAX_SHEET_SIZE = 6000  # pixels per side of a sheet
MIN_CELL_SIZE = 32  # pixels of an image in a sheet
TEXT_COLOR, MUTED_COLOR = "#1a1a1a", "#6b6b6b"


def tile_images(rows: list[list[Image.Image]], gap: int = 2) -> Image.Image:
    """Tile rows of images of equal size on white."""
    width, height = rows[0][0].size
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (columns * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * (width + gap), y * (height + gap)))
    return sheet


def build_labeled_grid(rows: list[tuple[str, list[Image.Image]]], columns: list[str], tile: int = 128) -> Image.Image:
    """A grid with a caption over each column and a label before each row; small images are enlarged to `tile` pixels."""
    size = rows[0][1][0].width
    factor = max(1, tile // size)
    tiles = [
        [image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS) for image in row]
        for _, row in rows
    ]
    sheet, font = tile_images(tiles, gap=4), load_font(12)
    tile_width, tile_height = size * factor, rows[0][1][0].height * factor
    left = 12 + max(int(font.getlength(label)) for label, _ in rows)
    captions = [wrap_text(text, tile_width, font) for text in columns]
    top = 10 + 16 * max((len(lines) for lines in captions), default=0)
    page = Image.new("RGB", (left + sheet.width + 4, top + sheet.height + 4), "white")
    page.paste(sheet, (left, top))
    draw = ImageDraw.Draw(page)
    for x, lines in enumerate(captions):
        draw.text((left + x * (tile_width + 4), 4), "\n".join(lines), "black", font)
    for y, (label, _) in enumerate(rows):
        draw.text((6, top + y * (tile_height + 4) + tile_height // 2 - 8), label, "black", font)
    return page


def wrap_text(text: str, width: int, font, max_lines: int = 4) -> list[str]:
    """Break text into at most `max_lines` lines of at most `width` pixels; an ellipsis marks cut text."""
    lines = [""]
    for term in text.split():
        extended = f"{lines[-1]} {term}".strip()
        if font.getlength(extended) <= width or not lines[-1]:
            lines[-1] = extended
        else:
            lines.append(term)
    return lines[:max_lines] if len(lines) <= max_lines else [*lines[: max_lines - 1], lines[max_lines - 1] + " …"]


@dataclass
class AxisLabels:
    """Labels of rows or columns, and the title of the axis."""

    title: str
    names: list[str]


def build_labeled_sheet(
    title: str, settings: str, rows: AxisLabels, columns: AxisLabels, cells: list[list[list[Image.Image]]]
) -> Image.Image:
    """A page with title and settings over a grid with labels on both axes; the images of a cell are side by side.

    Images are enlarged to 128 pixels, or downscaled to keep the page within `MAX_SHEET_SIZE`.
    """
    images, first = max(len(cell) for row in cells for cell in row), cells[0][0][0]
    width, height = compute_cell_size(first.size, len(cells[0]) * images, len(cells))
    gap, cell_width = 6, images * (width + 2) - 2
    column_width = max(cell_width, 60)
    font, bold = load_font(14), load_font(14, bold=True)
    row_labels = [wrap_long_words(name, 240, font, max(1, height // 18)) for name in rows.names]
    column_labels = [wrap_long_words(name, column_width, font, 4) for name in columns.names]
    left = max([font.getlength(line) for lines in row_labels for line in lines] + [bold.getlength(rows.title)])
    left = 16 + (int(left) + 12 if left else 0)
    page_width = max(left + len(cells[0]) * (column_width + gap) + 10, 360)
    header = [(bold, TEXT_COLOR, line) for line in wrap_long_words(title, page_width - 32, bold, 3)]
    header += [(font, MUTED_COLOR, line) for line in wrap_long_words(settings, page_width - 32, font, 4)]
    header_bottom = 14 + 20 * len(header) + 8
    top = header_bottom + (22 if columns.title or rows.title else 0) + 18 * max(map(len, column_labels), default=0) + 4
    page = Image.new("RGB", (page_width, top + len(cells) * (height + gap) + 10), "white")
    draw = ImageDraw.Draw(page)
    for number, (line_font, colour, line) in enumerate(header):
        draw.text((16, 12 + 20 * number), line, colour, line_font)
    draw.text((16, top - 26), rows.title, TEXT_COLOR, bold)
    draw.text((left, header_bottom), columns.title, TEXT_COLOR, bold)
    for x, lines in enumerate(column_labels):
        for number, line in enumerate(lines):
            line_left = left + x * (column_width + gap) + (column_width - font.getlength(line)) / 2
            draw.text((line_left, top - 22 - 18 * (len(lines) - 1 - number)), line, MUTED_COLOR, font)
    for y, row in enumerate(cells):
        row_top, labels = top + y * (height + gap), row_labels[y]
        for number, line in enumerate(labels):
            draw.text((16, row_top + height / 2 - 9 * len(labels) + 18 * number), line, MUTED_COLOR, font)
        for x, cell in enumerate(row):
            for number, image in enumerate(cell):
                resized = image.resize((width, height), Image.Resampling.LANCZOS)
                page.paste(resized, (left + x * (column_width + gap) + number * (width + 2), row_top))
    return page


def compute_cell_size(size: tuple[int, int], across: int, down: int) -> tuple[int, int]:
    """Width and height of an image on a sheet of `across` by `down` images."""
    factor = max(1, 128 // max(size))
    factor = min(factor, MAX_SHEET_SIZE / (size[0] * across), MAX_SHEET_SIZE / (size[1] * down))
    factor = max(factor, MIN_CELL_SIZE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def load_font(size: int, bold: bool = False):
    """DejaVu Sans from matplotlib, which covers more scripts than Pillow's default font."""
    (package,) = find_spec("matplotlib").submodule_search_locations
    return ImageFont.truetype(Path(package) / f"mpl-data/fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf", size)


def wrap_long_words(text: str, width: int, font, max_lines: int) -> list[str]:
    """As `wrap_text`, but split terms wider than `width`; no lines for empty text."""
    terms = []
    for term in text.split():
        while font.getlength(term) > width and len(term) > 1:
            cut = next(n for n in range(len(term) - 1, 0, -1) if n == 1 or font.getlength(term[:n]) <= width)
            terms.append(term[:cut])
            term = term[cut:]
        terms.append(term)
    lines = wrap_text(" ".join(terms), width, font, max_lines)
    while len(lines[-1]) > 2 and lines[-1].endswith("…") and font.getlength(lines[-1]) > width:
        lines[-1] = lines[-1][:-2].rstrip() + "…"
    return lines if lines != [""] else []
