"""Image decoding, cropping and conversion: file to upright RGB, and RGB to pixel tensors."""

import math
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntFlag
from pathlib import Path
from typing import IO

import torch
import torch.nn.functional as F
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from sdft.data.colour import convert_to_srgb, split_transparency
from sdft.data.image_formats import open_image

DECODER_VERSION = 2  # part of the digests of images: a new one discards the latents of older decoders
MAX_IMAGE_PIXELS = 128 * 2**20  # guards against decompression bombs
MAX_COVERING_PIXELS = 64 * 2**20  # of an image that is enlarged to cover its crop
ORIENTATION_TAG = 0x0112  # of EXIF
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DECODE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, KeyError, struct.error, OverflowError)

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `decode_image` refuses them by name

Size = tuple[int, int]  # width, height
WARNINGS_LOCK = threading.Lock()  # images are decoded in threads, which share the warning filters


class ImageNotes(IntFlag):
    """What decoding an image passed over; in `image.info["notes"]`."""

    MORE_FRAMES = 1
    DAMAGED_HEADER = 2
    DAMAGED_PROFILE = 4


NOTE_TEXTS = {
    ImageNotes.MORE_FRAMES: "only the first of several images is used",
    ImageNotes.DAMAGED_HEADER: "damaged EXIF data or metadata; the orientation may be wrong",
    ImageNotes.DAMAGED_PROFILE: "the ICC profile cannot be applied; taken as sRGB",
}


def describe_notes(notes: int) -> list[str]:
    return [NOTE_TEXTS[note] for note in ImageNotes(notes)]


def decode_image(
    file: Path | IO[bytes], background: str = "white", min_size: Size | None = None, name: str = ""
) -> Image.Image:
    """Decode the first frame to upright 8-bit sRGB; transparency is composited on `background`. `info["notes"]`: `ImageNotes`.

    JPEGs are decoded at the lowest resolution that covers `min_size`, which is several times faster. Raises `ValueError`
    naming an unreadable file.
    """
    name = name or str(file)
    try:
        with record_warnings() as caught:
            image = open_image(file, name)
        with image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise ValueError(
                    f"{image.width}x{image.height} px are more than {MAX_IMAGE_PIXELS // 2**20} megapixels"
                )
            if min_size:
                scale = max(min_size) / min(image.size)
                image.draft(None, (int(image.width * scale) + 1, int(image.height * scale) + 1))
            return to_upright_rgb(image, background, ImageNotes.DAMAGED_HEADER if caught else ImageNotes(0))
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: not a readable image ({error})") from None


@contextmanager
def record_warnings() -> Iterator[list]:
    """Record the warnings of Pillow, which name no file; one thread at a time, as this changes global state."""
    with WARNINGS_LOCK, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield caught


def read_orientation(image: Image.Image) -> tuple[Image.Transpose | None, ImageNotes]:
    """Return how to turn an image upright, and whether its EXIF data is damaged."""
    orientation = None
    with record_warnings() as caught:
        try:
            orientation = image.getexif().get(ORIENTATION_TAG)
        except DECODE_ERRORS as error:
            caught.append(error)
    method = ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None
    return method, ImageNotes.DAMAGED_HEADER if caught else ImageNotes(0)


def to_upright_rgb(image: Image.Image, background: str, notes: ImageNotes = ImageNotes(0)) -> Image.Image:  # noqa: B008
    """Apply the EXIF orientation and the ICC profile, and convert to 8-bit sRGB without transparency."""
    layout = image.tile[0].args if getattr(image, "tile", None) else ""
    raw_mode = layout if isinstance(layout, str) else str(layout[0]) if layout else ""
    if image.format == "TIFF":
        notes |= read_orientation(image)[1]  # Pillow reads it when it loads the image, rotates and resets it
    image.load()
    method, damage = read_orientation(image)
    notes |= damage
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: previews and gain maps of phones
        notes |= ImageNotes.MORE_FRAMES
    colours, alpha = split_transparency(image, raw_mode)
    try:
        rgb = convert_to_srgb(colours, image.info.get("icc_profile"))
    except ValueError:
        notes |= ImageNotes.DAMAGED_PROFILE
        rgb = colours.convert("RGB")
    if alpha is not None:
        rgb.putalpha(alpha)
        opaque = Image.new("RGBA", image.size, ImageColor.getrgb(background))
        rgb = Image.alpha_composite(opaque, rgb).convert("RGB")
    upright = rgb if method is None else rgb.transpose(method)
    upright.info = {"notes": int(notes)}
    return upright


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
    (width, height), scale = image.size, choose_scale(image.size, size)
    if width * height * scale**2 > MAX_COVERING_PIXELS:
        image = cut_strip(image, (size[0] / scale, size[1] / scale), crop_position)
    covering = choose_covering_size(image.size, size, scale)
    if covering != image.size:
        image = image.resize(covering, Image.Resampling.LANCZOS, reducing_gap=3.0)
    left, top = place_crop(covering, size, crop_position)
    image = image.crop((left, top, left + size[0], top + size[1]))
    if flip:
        image = ImageOps.mirror(image)
    return image_to_pixels(image)


def choose_scale(image_size: Size, size: Size) -> float:
    """The factor by which an image is resized to cover `size`."""
    return max(size[0] / image_size[0], size[1] / image_size[1])


def choose_covering_size(image_size: Size, size: Size, scale: float) -> Size:
    """The size of an image that was resized by `scale` to cover `size`."""
    return max(size[0], round(image_size[0] * scale)), max(size[1], round(image_size[1] * scale))


def place_crop(covering: Size, size: Size, crop_position: tuple[float, float]) -> tuple[int, int]:
    """Left and top of a crop of `size` at `crop_position` (0..1; x, y)."""
    left, top = (
        int(p * (covered - cropped + 1 - 1e-9))
        for p, covered, cropped in zip(crop_position, covering, size, strict=True)
    )
    return left, top


def locate_crop(
    image_size: Size, size: Size, crop_position: tuple[float, float] = (0.5, 0.5), flip: bool = False
) -> tuple[int, int]:
    """Left and top, in the resized image, of the crop of `resize_and_crop`; those of the mirrored image if `flip`."""
    covering = choose_covering_size(image_size, size, choose_scale(image_size, size))
    left, top = place_crop(covering, size, crop_position)
    return (covering[0] - left - size[0] if flip else left), top


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
