"""The samples that lie in a run's folder: by step, by prompt and seed, and as one small strip."""

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sdft.apps.gallery.run_facts import to_dict_or_empty, to_list_or_empty, to_text
from sdft.apps.gallery.safe_paths import read_safe_json, resolve_safe_path

STRIP_IMAGES, STRIP_HEIGHT = 6, 128  # pictures of a strip, and its height in pixels
IMAGE_NAME = re.compile(r"[\w][\w.-]*\.(png|jpg|jpeg|webp)", re.ASCII)
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
MAX_IMAGES_PER_STEP = 64  # pictures of a step that are shown
MAX_THUMBNAIL_PIXELS = 64_000_000  # of a picture that is opened for a strip


@dataclass(frozen=True)
class SampleImage:
    """`file` is below the run's folder."""

    file: str
    prompt: str
    seed: str


def list_sample_steps(folder: Path) -> list[int]:
    """That have samples, in order."""
    try:
        names = os.listdir(folder / "samples")
    except OSError:
        return []
    found = (re.fullmatch(r"step-(\d{1,12})", name, re.ASCII) for name in names)
    return sorted({int(told[1]) for told in found if told and format_step_name(int(told[1])) in names})


def format_step_name(step: int) -> str:
    return f"step-{step:06d}"


def list_sample_images(folder: Path, step: int) -> list[SampleImage]:
    """What was drawn at a step, as far as its files are there; without their `samples.json` they have no prompts."""
    place = folder / "samples" / format_step_name(step)
    try:
        there = sorted(name for name in os.listdir(place) if IMAGE_NAME.fullmatch(name))
    except OSError:
        return []
    told = [
        to_dict_or_empty(one)
        for one in to_list_or_empty(read_safe_json(folder, "samples", format_step_name(step), "samples.json"))
    ]
    known = {to_text(one.get("file")): (to_text(one.get("prompt")), to_text(one.get("seed"))) for one in told}
    if not known:
        known = dict.fromkeys(there, ("", ""))
    return [SampleImage(f"samples/{format_step_name(step)}/{name}", *known[name]) for name in known if name in there][
        :MAX_IMAGES_PER_STEP
    ]


def render_strip(folder: Path) -> bytes | None:
    """The first picture of each prompt at the last step, side by side, as a PNG; None when there is none."""
    for step in reversed(list_sample_steps(folder)[-3:]):  # the last one may be being written
        firsts = {picture.prompt or picture.file: picture for picture in reversed(list_sample_images(folder, step))}
        pictures = [picture for picture in list_sample_images(folder, step) if picture in firsts.values()][
            :STRIP_IMAGES
        ]
        tiles = [tile for tile in (load_thumbnail(folder, picture) for picture in pictures) if tile]
        if tiles:
            sheet = Image.new("RGB", (sum(tile.width for tile in tiles), STRIP_HEIGHT))
            for number, tile in enumerate(tiles):
                sheet.paste(tile, (sum(earlier.width for earlier in tiles[:number]), 0))
            data = io.BytesIO()
            sheet.save(data, "PNG")
            return data.getvalue()
    return None


def load_thumbnail(folder: Path, picture: SampleImage) -> Image.Image | None:
    """A picture as high as a strip; None for what is none."""
    try:
        with Image.open(resolve_safe_path(folder, *picture.file.split("/")), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_THUMBNAIL_PIXELS or not 0.1 < image.width / image.height < 10:
                return None
            image.draft("RGB", (STRIP_HEIGHT, STRIP_HEIGHT))
            size = (max(1, round(image.width * STRIP_HEIGHT / image.height)), STRIP_HEIGHT)
            return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    except Exception:  # of a broken file a decoder raises whatever it likes
        return None
