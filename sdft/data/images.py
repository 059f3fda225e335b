"""From a file to upright RGB, and from RGB to the square that is trained on."""

import struct
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # what a file is, not what it is called; none runs programs
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
MAX_IMAGE_PIXELS = 128 * 2**20  # beyond it a small file may be a bomb

Size = tuple[int, int]  # width, height


def decode_image(
    file: Path | IO[bytes], background: str = "white", least: Size | None = None, name: str = ""
) -> Image.Image:
    """Upright 8-bit RGB of any mode, of the first frame; transparency lies on `background`.

    JPEGs are decoded no finer than needed to cover `least`, which is several times faster. `ValueError` names a file that
    cannot be read.
    """
    name = name or str(file)
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise ValueError(
                    f"{image.width}x{image.height} px are more than {MAX_IMAGE_PIXELS // 2**20} megapixels"
                )
            if least:
                scale = max(least) / min(image.size)
                image.draft(None, (int(image.width * scale) + 1, int(image.height * scale) + 1))
            return to_upright_rgb(image, background)
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: not a readable picture ({error})") from None


def to_upright_rgb(image: Image.Image, background: str) -> Image.Image:
    """Turned as its EXIF says, in 8-bit RGB, without transparency."""
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        image = image.copy()  # what EXIF says is not readable: as it lies
    if image.mode.startswith("I"):  # 16 bits a pixel
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, ImageColor.getrgb(background))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def decode_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """A mask in RGB; `ValueError` when it is not of the picture's `size`, or black all over."""
    mask = decode_image(path, "black")
    if mask.size != size:
        raise ValueError(f"{path}: {mask.width}x{mask.height} px, and its picture {size[0]}x{size[1]}; make them equal")
    if mask.getextrema() == ((0, 0),) * 3:
        raise ValueError(f"{path}: black all over, so nothing would be learned; white is what is learned")
    return mask


def resize_and_crop(
    image: Image.Image, size: tuple[int, int], crop_position: tuple[float, float] = (0.5, 0.5), flip: bool = False
) -> Tensor:
    """Resized to cover `size` (width, height), aspect kept, then cropped at `crop_position` (0..1 of what is left over, x and y).

    Returns `[3, height, width]`, -1..1.
    """
    (width, height), (wide, high) = image.size, size
    scale = max(wide / width, high / height)
    covering = (max(wide, round(width * scale)), max(high, round(height * scale)))
    if covering != image.size:
        image = image.resize(covering, Image.Resampling.LANCZOS, reducing_gap=3.0)
    left, top = (
        int(p * (all_of - kept + 1 - 1e-9)) for p, all_of, kept in zip(crop_position, covering, size, strict=True)
    )
    image = image.crop((left, top, left + wide, top + high))
    if flip:
        image = ImageOps.mirror(image)
    return image_to_pixels(image)


def image_to_pixels(image: Image.Image) -> Tensor:
    """RGB to `[3, height, width]`, -1..1."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).permute(2, 0, 1).float() / 127.5 - 1


def pixels_to_image(pixels: Tensor) -> Image.Image:
    """And back."""
    return Image.fromarray(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
