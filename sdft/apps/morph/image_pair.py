"""Pair of captioned images, resized to a common size that the model supports."""

from pathlib import Path

from PIL import Image

from sdft.data.buckets import Size, choose_bucket, choose_bucket_step
from sdft.data.dataset import CaptionedImage
from sdft.data.images import decode_image, describe_notes, pixels_to_image, resize_and_crop
from sdft.models.diffusion_model import DiffusionModel

UPSCALING_WARNING_FACTOR = 2.0  # enlargement above which a warning is printed


def read_image_pair(images, prompts: list[str]) -> list[CaptionedImage]:
    """Read two images; a single prompt applies to both. `ValueError` for a wrong number or unreadable files."""
    files = [Path(str(file)).expanduser() for file in images]
    if len(files) != 2:
        names = [str(file) for file in files]
        raise ValueError(f"images={names}: got {len(files)}; give two, as 'images=[a.jpg,b.jpg]'")
    if len(prompts) not in (1, 2):
        raise ValueError(f"prompts={prompts}: got {len(prompts)}; give one for both images, or one each")
    if missing := [file for file in files if not file.is_file()]:
        raise ValueError(f"images={missing[0]}: no such file")
    captions = prompts * (2 // len(prompts))
    return [
        CaptionedImage(decode_image(file), caption, str(file)) for file, caption in zip(files, captions, strict=True)
    ]


def resize_to_common_size(
    images: list[CaptionedImage], model: DiffusionModel, resolution: int
) -> tuple[list[CaptionedImage], list[str]]:
    """Resize and center-crop both images to one size, and describe the changes in lines.

    The size is the aspect-ratio bucket of both, as in training, or a square if their buckets differ.
    """
    model.latent_shape(resolution)
    step = choose_bucket_step(resolution, model.size_multiple)
    buckets: set[Size] = {choose_bucket(sample.image.size, resolution, step, 0) for sample in images}
    size = buckets.pop() if len(buckets) == 1 else (resolution, resolution)
    reason = "aspect ratios differ, center square" if buckets else "center crop"
    resized = [sample for sample in images if sample.image.size != size]
    lines = [f"{s.name}: {s.image.width}x{s.image.height} resized to {size[0]}x{size[1]} ({reason})" for s in resized]
    lines += [
        f"{sample.name}: {note}" for sample in images for note in describe_notes(sample.image.info.get("notes", 0))
    ]
    for sample in resized:
        factor = max(size[0] / sample.image.width, size[1] / sample.image.height)
        if factor > UPSCALING_WARNING_FACTOR:
            lines.append(f"{sample.name}: enlarged {factor:.1f} times, which reduces sharpness")
    return [CaptionedImage(crop_to_size(s.image, size), s.caption, s.name) for s in images], lines


def crop_to_size(image: Image.Image, size: Size) -> Image.Image:
    """Resize to cover `size`, keeping the aspect ratio, and crop the center."""
    if image.size == size:
        return image
    return pixels_to_image(resize_and_crop(image, size))
