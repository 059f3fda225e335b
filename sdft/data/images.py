"""Image decoding, cropping and conversion: file to upright RGB, and RGB to pixel tensors."""

import math
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # by content, not by suffix; no decoder of these runs programs
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
MAX_IMAGE_PIXELS = 128 * 2**20  # guards against decompression bombs
MAX_COVERING_PIXELS = 64 * 2**20  # of an image that is enlarged to cover its crop
WARNINGS_LOCK = threading.Lock()  # images are decoded in threads, which share the warning filters

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `decode_image` refuses them by name

Size = tuple[int, int]  # width, height


def decode_image(
    file: Path | IO[bytes], background: str = "white", min_size: Size | None = None, name: str = ""
) -> Image.Image:
    """Decode the first frame to upright 8-bit RGB; transparency is composited on `background`.

    JPEGs are decoded at the lowest resolution that covers `min_size`, which is several times faster. Raises `ValueError`
    naming an unreadable file.
    """
    name = name or str(file)
    try:
        with silence_pillow():
            opened = Image.open(file, formats=FORMATS)
        with opened as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise ValueError(
                    f"{image.width}x{image.height} px are more than {MAX_IMAGE_PIXELS // 2**20} megapixels"
                )
            if min_size:
                scale = max(min_size) / min(image.size)
                image.draft(None, (int(image.width * scale) + 1, int(image.height * scale) + 1))
            return to_upright_rgb(image, background)
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: not a readable image ({error})") from None


@contextmanager
def silence_pillow() -> Iterator[None]:
    """Suppress warnings about damaged EXIF data, which do not name the file and do not concern its pixels."""
    with WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def to_upright_rgb(image: Image.Image, background: str) -> Image.Image:
    """Apply the EXIF orientation and convert to 8-bit RGB without transparency."""
    image.load()
    try:
        with silence_pillow():
            image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        image = image.copy()  # unreadable EXIF data
    if image.mode.startswith("I"):  # 16 bits per pixel
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, ImageColor.getrgb(background))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def check_mask_size(path: Path, size: Size, image_size: Size) -> None:
    """Raise `ValueError` unless a mask has the size of its image."""
    if size != image_size:
        raise ValueError(
            f"{path}: {size[0]}x{size[1]} px, but its image has {image_size[0]}x{image_size[1]}; use equal sizes"
        )


def decode_mask(path: Path) -> Image.Image:
    """Decode a mask to RGB; raises `ValueError` if it is entirely black."""
    mask = decode_image(path, "black")
    if mask.getextrema() == ((0, 0),) * 3:
        raise ValueError(f"{path}: entirely black, so nothing would be trained on; paint the trained region white")
    return mask


def resize_and_crop(
    image: Image.Image, size: tuple[int, int], crop_position: tuple[float, float] = (0.5, 0.5), flip: bool = False
) -> Tensor:
    """Resize to cover `size` (width, height), keeping the aspect ratio, and crop the excess at `crop_position` (0..1; x, y).

    Returns `[3, height, width]`, -1..1.
    """
    (width, height), (target_width, target_height) = image.size, size
    scale = max(target_width / width, target_height / height)
    if width * height * scale**2 > MAX_COVERING_PIXELS:
        image = cut_strip(image, (target_width / scale, target_height / scale), crop_position)
        width, height = image.size
    covering = (max(target_width, round(width * scale)), max(target_height, round(height * scale)))
    if covering != image.size:
        image = image.resize(covering, Image.Resampling.LANCZOS, reducing_gap=3.0)
    left, top = (
        int(p * (covered - cropped + 1 - 1e-9))
        for p, covered, cropped in zip(crop_position, covering, size, strict=True)
    )
    image = image.crop((left, top, left + target_width, top + target_height))
    if flip:
        image = ImageOps.mirror(image)
    return image_to_pixels(image)


def cut_strip(image: Image.Image, size: tuple[float, float], crop_position: tuple[float, float]) -> Image.Image:
    """Cut a very elongated image to a little more than `size` before it is enlarged."""
    box = [min(whole, math.ceil(part) + 2) for whole, part in zip(image.size, size, strict=True)]
    left, top = (int(p * (whole - part)) for p, whole, part in zip(crop_position, image.size, box, strict=True))
    return image.crop((left, top, left + box[0], top + box[1]))


def crop_with_mask(
    image: Image.Image,
    mask: Image.Image | None,
    size: Size,
    mask_shape: tuple[int, int],
    crop_position: tuple[float, float] = (0.5, 0.5),
    flip: bool = False,
) -> dict[str, Tensor]:
    """Crop an image and its mask equally: `pixels` `[3, height, width]`, -1..1, and `mask` `[1, *mask_shape]`, 0..1."""
    weights = torch.ones(1, *mask_shape)
    if mask is not None:
        pixels = (resize_and_crop(mask, size, crop_position, flip)[:1] + 1) / 2
        weights = F.adaptive_avg_pool2d(pixels, mask_shape)
    return {"pixels": resize_and_crop(image, size, crop_position, flip), "mask": weights}


def image_to_pixels(image: Image.Image) -> Tensor:
    """Convert RGB to `[3, height, width]`, -1..1."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).permute(2, 0, 1).float() / 127.5 - 1


def pixels_to_image(pixels: Tensor) -> Image.Image:
    """Convert `[3, height, width]`, -1..1, to RGB."""
    return Image.fromarray(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
