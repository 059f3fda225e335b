"""Image formats that are read, by content: those of Pillow whose decoders run no programs, and HEIC and JPEG XL as extras."""

import importlib
import importlib.util
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000")
PILLOW_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".tga"),
)
EXTRA_FORMATS = {  # format: module, package, suffixes, and the first bytes of its files (offset, alternatives)
    "HEIF": (
        "pillow_heif",
        "pillow-heif",
        (".heic", ".heif", ".hif"),
        (4, (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")),
    ),
    "JXL": ("pillow_jxl", "pillow-jxl-plugin", (".jxl",), (0, (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"))),
}
EXTRA_SUFFIXES = {suffix: package for _, package, suffixes, _ in EXTRA_FORMATS.values() for suffix in suffixes}
IMAGE_SUFFIXES = (
    *PILLOW_SUFFIXES,
    *(
        suffix
        for module, _, suffixes, _ in EXTRA_FORMATS.values()
        if importlib.util.find_spec(module)
        for suffix in suffixes
    ),
)


def open_image(file: Path | IO[bytes], name: str) -> Image.Image:
    """Open an image of any of the formats; raises `ValueError` naming a package that is missing."""
    formats = (*FORMATS, "TGA") if name.lower().endswith(".tga") else FORMATS  # TGA has no signature
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError:
        if (extra := find_extra_format(read_start(file))) is None:
            raise
    module, package, *_ = EXTRA_FORMATS[extra]
    try:
        plugin = importlib.import_module(module)
    except ModuleNotFoundError:
        raise ValueError(f"{extra} needs a package that is not installed: pip install {package}") from None
    if extra == "HEIF":
        plugin.register_heif_opener()
    return Image.open(file, formats=[extra])


def read_start(file: Path | IO[bytes]) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as stream:
            return stream.read(16)
    file.seek(0)
    start = file.read(16)
    file.seek(0)
    return start


def find_extra_format(start: bytes) -> str | None:
    for name, (_, _, _, (offset, signatures)) in EXTRA_FORMATS.items():
        if start[offset:].startswith(signatures):
            return name
    return None
