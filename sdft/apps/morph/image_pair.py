"""Two pictures with their words, brought to one size that the model takes."""

from pathlib import Path

from PIL import Image

from sdft.data.buckets import Size, choose_bucket, choose_bucket_step
from sdft.data.dataset import CaptionedImage
from sdft.data.images import decode_image, pixels_to_image, resize_and_crop
from sdft.models.stable_diffusion import StableDiffusion

UPSCALING_WARNING_FACTOR = 2.0  # times, from which on it is told


def read_image_pair(images, prompts: list[str]) -> list[CaptionedImage]:
    """The pictures as they are; one prompt is for both. `ValueError` for anything but two that can be read."""
    files = [Path(str(file)).expanduser() for file in images]
    if len(files) != 2:
        raise ValueError(
            f"images={[str(file) for file in images]}: {len(files)} given; give two, as 'images=[a.jpg,b.jpg]'"
        )
    if len(prompts) not in (1, 2):
        raise ValueError(f"prompts={prompts}: {len(prompts)} given; give one for both pictures, or one each")
    if missing := [file for file in files if not file.is_file()]:
        raise ValueError(f"images={missing[0]}: no such picture")
    return [
        CaptionedImage(decode_image(file), words, str(file))
        for file, words in zip(files, prompts * (2 // len(prompts)), strict=True)
    ]


def resize_to_common_size(
    pictures: list[CaptionedImage], model: StableDiffusion, resolution: int
) -> tuple[list[CaptionedImage], list[str]]:
    """Both at one size, and what was done to them in lines.

    The bucket of their shape, as in training, where both are of one bucket; else the square. What stands out is cropped evenly.
    """
    model.latent_shape(resolution)
    sides = choose_bucket_step(resolution, model.size_multiple)
    wanted: set[Size] = {choose_bucket(picture.image.size, resolution, sides, 0) for picture in pictures}
    size = wanted.pop() if len(wanted) == 1 else (resolution, resolution)
    why = "their shapes differ, so the middle square" if wanted else "cropped in the middle where a side stands out"
    changed = [picture for picture in pictures if picture.image.size != size]
    lines = [f"{p.name}: {p.image.width}x{p.image.height} brought to {size[0]}x{size[1]} ({why})" for p in changed]
    for picture in changed:
        times = max(size[0] / picture.image.width, size[1] / picture.image.height)
        if times > UPSCALING_WARNING_FACTOR:
            lines.append(f"{picture.name}: enlarged {times:.1f} times, which shows")
    return [
        CaptionedImage(crop_to_size(picture.image, size), picture.caption, picture.name) for picture in pictures
    ], lines


def crop_to_size(image: Image.Image, size: Size) -> Image.Image:
    """Resized to cover `size`, aspect kept, and the middle of it."""
    if image.size == size:
        return image
    return pixels_to_image(resize_and_crop(image, size))
