"""Pictures side by side on a sheet, with labels."""

from PIL import Image


def grid(rows: list[list[Image.Image]], gap: int = 2) -> Image.Image:
    """Rows of equal pictures on white."""
    width, height = rows[0][0].size
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (columns * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (width + gap), y * (height + gap)))
    return sheet


def labelled(rows: list[tuple[str, list[Image.Image]]], columns: list[str], tile: int = 128) -> Image.Image:
    """A grid with a caption over each column and a label before each row; small pictures are enlarged to `tile` pixels."""
    from PIL import ImageDraw, ImageFont

    size = rows[0][1][0].width
    factor = max(1, tile // size)
    tiles = [
        [p.resize((p.width * factor, p.height * factor), Image.Resampling.LANCZOS) for p in row] for _, row in rows
    ]
    sheet, font = grid(tiles, gap=4), ImageFont.load_default(13)
    edge = size * factor
    left = 12 + max(int(font.getlength(label)) for label, _ in rows)
    heads = [wrap(text, edge, font) for text in columns]
    top = 10 + 16 * max((len(lines) for lines in heads), default=0)
    page = Image.new("RGB", (left + sheet.width + 4, top + sheet.height + 4), "white")
    page.paste(sheet, (left, top))
    draw = ImageDraw.Draw(page)
    for x, lines in enumerate(heads):
        draw.text((left + x * (edge + 4), 4), "\n".join(lines), "black", font)
    for y, (label, _) in enumerate(rows):
        draw.text((6, top + y * (edge + 4) + edge // 2 - 8), label, "black", font)
    return page


def wrap(text: str, width: int, font, most: int = 4) -> list[str]:
    """Lines of at most `width` pixels, and at most `most` of them."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines[:most] if len(lines) <= most else [*lines[: most - 1], lines[most - 1] + " …"]
