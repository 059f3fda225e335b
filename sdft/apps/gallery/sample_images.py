"""The samples that lie in a run's folder: by step, by prompt and seed, and as one small strip."""

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sdft.apps.gallery.run_facts import listing, mapping, text
from sdft.apps.gallery.safe_paths import json_of, own

STRIP, HEIGHT = 6, 128  # pictures of a strip, and its height in pixels
PICTURE = re.compile(r"[\w][\w.-]*\.(png|jpg|jpeg|webp)", re.ASCII)
FORMATS = ("PNG", "JPEG", "WEBP")
MOST = 64  # pictures of a step that are shown
PIXELS = 64_000_000  # of a picture that is opened for a strip


@dataclass(frozen=True)
class Print:
    """`file` is below the run's folder."""

    file: str
    prompt: str
    seed: str


def steps(folder: Path) -> list[int]:
    """That have samples, in order."""
    try:
        names = os.listdir(folder / "samples")
    except OSError:
        return []
    found = (re.fullmatch(r"step-(\d{1,12})", name, re.ASCII) for name in names)
    return sorted({int(told[1]) for told in found if told and named(int(told[1])) in names})


def named(step: int) -> str:
    return f"step-{step:06d}"


def prints(folder: Path, step: int) -> list[Print]:
    """What was drawn at a step, as far as its files are there; without their `samples.json` they have no prompts."""
    place = folder / "samples" / named(step)
    try:
        there = sorted(name for name in os.listdir(place) if PICTURE.fullmatch(name))
    except OSError:
        return []
    told = [mapping(one) for one in listing(json_of(folder, "samples", named(step), "samples.json"))]
    known = {text(one.get("file")): (text(one.get("prompt")), text(one.get("seed"))) for one in told}
    if not known:
        known = dict.fromkeys(there, ("", ""))
    return [Print(f"samples/{named(step)}/{name}", *known[name]) for name in known if name in there][:MOST]


def strip(folder: Path) -> bytes | None:
    """The first picture of each prompt at the last step, side by side, as a PNG; None when there is none."""
    for step in reversed(steps(folder)[-3:]):  # the last one may be being written
        firsts = {picture.prompt or picture.file: picture for picture in reversed(prints(folder, step))}
        pictures = [picture for picture in prints(folder, step) if picture in firsts.values()][:STRIP]
        tiles = [tile for tile in (opened(folder, picture) for picture in pictures) if tile]
        if tiles:
            sheet = Image.new("RGB", (sum(tile.width for tile in tiles), HEIGHT))
            for number, tile in enumerate(tiles):
                sheet.paste(tile, (sum(earlier.width for earlier in tiles[:number]), 0))
            data = io.BytesIO()
            sheet.save(data, "PNG")
            return data.getvalue()
    return None


def opened(folder: Path, picture: Print) -> Image.Image | None:
    """A picture as high as a strip; None for what is none."""
    try:
        with Image.open(own(folder, *picture.file.split("/")), formats=FORMATS) as image:
            if image.width * image.height > PIXELS or not 0.1 < image.width / image.height < 10:
                return None
            image.draft("RGB", (HEIGHT, HEIGHT))
            size = (max(1, round(image.width * HEIGHT / image.height)), HEIGHT)
            return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    except Exception:  # of a broken file a decoder raises whatever it likes
        return None
