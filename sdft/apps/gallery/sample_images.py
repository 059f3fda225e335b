"""Sample images of a run: by step, by prompt and seed, and as a thumbnail strip."""

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sdft.apps.gallery.run_facts import to_text
from sdft.runs.links import resolve_safe_path
from sdft.runs.samples import read_samples

STRIP_IMAGES, STRIP_HEIGHT = 6, 128  # images, pixels
IMAGE_NAME = re.compile(r"[\w][\w.-]*\.(png|jpg|jpeg|webp)", re.ASCII)
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
MAX_IMAGES_PER_STEP = 64
MAX_THUMBNAIL_PIXELS = 64_000_000  # larger images are skipped


@dataclass(frozen=True)
class SampleImage:
    """`file` is relative to the run's folder."""

    file: str
    prompt: str
    seed: str


def list_sample_steps(folder: Path) -> list[int]:
    """Steps that have samples, in ascending order."""
    try:
        names = os.listdir(folder / "samples")
    except OSError:
        return []
    matches = (re.fullmatch(r"step-(\d{1,12})", name, re.ASCII) for name in names)
    return sorted({int(match[1]) for match in matches if match and format_step_name(int(match[1])) in names})


def format_step_name(step: int) -> str:
    return f"step-{step:06d}"


def list_sample_images(folder: Path, step: int) -> list[SampleImage]:
    """Existing images of a step; without `samples.json` their prompts are empty."""
    parent = folder / "samples" / format_step_name(step)
    try:
        files = sorted(name for name in os.listdir(parent) if IMAGE_NAME.fullmatch(name))
    except OSError:
        return []
    entries = read_step_samples(folder, parent.name)
    labels = {one["file"]: (to_text(one["prompt"]), to_text(one["seed"])) for one in entries}
    if not labels:
        labels = dict.fromkeys(files, ("", ""))
    return [SampleImage(f"samples/{format_step_name(step)}/{name}", *labels[name]) for name in labels if name in files][
        :MAX_IMAGES_PER_STEP
    ]


def read_step_samples(folder: Path, step_name: str) -> list[dict]:
    """Content of a step's `samples.json`; empty if it is missing or unreadable."""
    try:
        return read_samples(resolve_safe_path(folder, "samples", step_name, "samples.json").parent)
    except (OSError, ValueError):
        return []


def render_strip(folder: Path) -> bytes | None:
    """PNG with the first image of each prompt at the last step side by side, or None."""
    for step in reversed(list_sample_steps(folder)[-3:]):  # the last step may be incomplete
        firsts = {sample.prompt or sample.file: sample for sample in reversed(list_sample_images(folder, step))}
        samples = [sample for sample in list_sample_images(folder, step) if sample in firsts.values()][:STRIP_IMAGES]
        tiles = [tile for tile in (load_thumbnail(folder, sample) for sample in samples) if tile]
        if tiles:
            sheet = Image.new("RGB", (sum(tile.width for tile in tiles), STRIP_HEIGHT))
            for number, tile in enumerate(tiles):
                sheet.paste(tile, (sum(earlier.width for earlier in tiles[:number]), 0))
            data = io.BytesIO()
            sheet.save(data, "PNG")
            return data.getvalue()
    return None


def load_thumbnail(folder: Path, sample: SampleImage) -> Image.Image | None:
    """Image scaled to the height of the strip, None if it is unreadable."""
    try:
        with Image.open(resolve_safe_path(folder, *sample.file.split("/")), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_THUMBNAIL_PIXELS or not 0.1 < image.width / image.height < 10:
                return None
            image.draft("RGB", (STRIP_HEIGHT, STRIP_HEIGHT))
            size = (max(1, round(image.width * STRIP_HEIGHT / image.height)), STRIP_HEIGHT)
            return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    except Exception:  # decoders raise anything on broken files
        return None
