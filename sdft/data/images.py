"""From a file to upright RGB, and from RGB to the square that is trained on."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # what a file is, not what it is called; none runs programs
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def decode(path: Path, background: str = "white") -> Image.Image:
    """Upright 8-bit RGB of any mode; transparency lies on `background`. `ValueError` names a file that cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from None
    if image.mode.startswith("I"):  # 16 bits a pixel
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, ImageColor.getrgb(background))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, resolution: int, place: tuple[float, float] = (0.5, 0.5), flip: bool = False) -> Tensor:
    """Short side to `resolution`, aspect kept, then a square crop at `place` (0..1 of what is left over, x and y).

    Returns `[3, resolution, resolution]`, -1..1.
    """
    width, height = image.size
    scale = resolution / min(width, height)
    size = (max(resolution, round(width * scale)), max(resolution, round(height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    left, top = (int(p * (side - resolution + 1 - 1e-9)) for p, side in zip(place, size, strict=True))
    image = image.crop((left, top, left + resolution, top + resolution))
    if flip:
        image = ImageOps.mirror(image)
    return pixels(image)


def pixels(image: Image.Image) -> Tensor:
    """RGB to `[3, height, width]`, -1..1."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).permute(2, 0, 1).float() / 127.5 - 1
