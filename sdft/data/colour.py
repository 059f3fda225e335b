"""Convert images of every Pillow mode and colour profile to 8-bit sRGB and transparency."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageCms

PROFILE_TOLERANCE = 2  # of 255: profiles that change no colour by more are sRGB, and such images stay bit-exact
GREY_SCALES = {"L;2": 85, "L;4": 17}  # of PNG: Pillow scales these pixels, but not their transparent value
MAX_UINT8, MAX_UINT16 = 255, 65535
PROFILE_MODES = {("L", "GRAY"): "L", ("L", "RGB"): "RGB", ("RGB", "RGB"): "RGB", ("CMYK", "CMYK"): "CMYK"}
MIN_FLOAT_RANGE = 16  # between 1 and this maximum, floats are neither 0..1 nor 0..255


def split_transparency(image: Image.Image, raw_mode: str = "") -> tuple[Image.Image, Image.Image | None]:
    """Return the opaque image, 8 bits per channel, in mode L, RGB, CMYK or LAB, and its alpha channel in mode L.

    `raw_mode` is the layout in the file, see `get_raw_mode`. Raises `ValueError` for values without a known range.
    """
    mode, value = image.mode, image.info.get("transparency")
    if mode.startswith(("I", "F")):
        values = np.asarray(image)
        alpha = None if value is None else Image.fromarray(np.where(values == value, 0, 255).astype(np.uint8))
        return Image.fromarray(reduce_depth(values, raw_mode)), alpha
    if mode == "La":
        image = image.convert("LA")
    if mode in ("LA", "La"):
        return image.getchannel("L"), image.getchannel("A")
    if image.has_transparency_data and mode not in ("CMYK", "LAB", "YCbCr", "HSV"):
        image = set_transparent_value(image, raw_mode)
        rgba = image.convert("RGBA")
        return rgba.getchannel("R") if mode in ("1", "L") else rgba.convert("RGB"), rgba.getchannel("A")
    if mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if mode == "1" else "RGB"), None


def set_transparent_value(image: Image.Image, raw_mode: str) -> Image.Image:
    """Give the transparent value of a PNG the depth that Pillow gave its pixels."""
    value = image.info.get("transparency")
    if raw_mode in GREY_SCALES and isinstance(value, int):
        image = image.copy()
        image.info["transparency"] = value * GREY_SCALES[raw_mode]
    elif raw_mode == "RGB;16B" and isinstance(value, tuple):
        image = image.copy()
        image.info["transparency"] = tuple(channel >> 8 for channel in value)
    return image


def reduce_depth(values: np.ndarray, raw_mode: str) -> np.ndarray:
    """Reduce integers of up to 32 bits, or floats, to 8 bits."""
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= MAX_UINT16):  # also NaN
        raise ValueError(f"values from {lowest:g} to {highest:g}; save it with 8 or 16 bits per channel")
    if values.dtype.kind == "f":
        if 1 < highest < MIN_FLOAT_RANGE or highest > MAX_UINT8:
            raise ValueError(f"float values up to {highest:g}; save it with values of 0 to 1, or 0 to 255")
        return (values * (MAX_UINT8 if highest <= 1 else 1)).round().astype(np.uint8)
    if values.dtype.itemsize > 2 and highest <= MAX_UINT8:
        return values.astype(np.uint8)
    return (values >> (4 if raw_mode.startswith("I;12") else 8)).astype(np.uint8)


def convert_to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image of mode L, RGB, CMYK or LAB to sRGB. Raises `ValueError` if its ICC profile cannot be applied."""
    if not profile or image.mode == "LAB":
        return image.convert("RGB")
    try:
        mode, transform = build_transform(profile, image.mode)
        image = image.convert(mode)
        return ImageCms.applyTransform(image, transform) if transform else image.convert("RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, MemoryError) as error:
        raise ValueError(f"ICC profile: {error}") from None


@lru_cache(maxsize=64)
def build_transform(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Return the mode that a profile converts from, and the conversion to sRGB; None if the profile is sRGB."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if (mode, space) not in PROFILE_MODES:
        raise ValueError(f"of the colour space {space}")
    mode = PROFILE_MODES[mode, space]
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "CMYK":
        return mode, transform
    steps = np.linspace(0, MAX_UINT8, 17).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(17, -1, 3)
    probe = Image.fromarray(grid if mode == "RGB" else grid[..., 0].copy())
    difference = ImageChops.difference(ImageCms.applyTransform(probe, transform), probe.convert("RGB"))
    is_srgb = max(high for _, high in difference.getextrema()) <= PROFILE_TOLERANCE
    return mode, None if is_srgb else transform
