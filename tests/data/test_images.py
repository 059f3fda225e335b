"""Files decode to upright RGB, and crops keep the aspect ratio."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from sdft.data.images import decode_image, resize_and_crop


def corner_colors(image: Image.Image) -> str:
    """The dominant colour of the four corners, clockwise from the top left."""
    w, h = image.size
    corners = [(2, 2), (w - 3, 2), (w - 3, h - 3), (2, h - 3)]
    return "".join("rgb"[int(np.argmax(image.getpixel(corner)))] for corner in corners)


@pytest.fixture
def quadrants() -> Image.Image:
    """60 x 40: red at the top left, green at the top right, blue below."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30, 0] = pixels[:20, 30:, 1] = pixels[20:, :, 2] = 255
    return Image.fromarray(pixels)


def test_exif_rotation_is_applied(quadrants, tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned; the viewer turns it back clockwise
    quadrants.save(tmp_path / "a.png", exif=exif)
    assert decode_image(tmp_path / "a.png").size == (40, 60)
    assert corner_colors(decode_image(tmp_path / "a.png")) == "brgb"


def test_damaged_exif_data_is_read_in_silence(quadrants, tmp_path, recwarn):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x1a\x01\x05\0\x01\0\0\0\xff\xff\xff\0"
    files = [tmp_path / f"{number}.jpg" for number in range(20)]
    for file in files:
        quadrants.save(file, exif=exif)
    with ThreadPoolExecutor(4) as threads:
        assert all(image.size == (40, 60) for image in threads.map(decode_image, files))
    assert not recwarn.list


def test_transparency_is_composited_on_the_background(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert decode_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(tmp_path / "a.png", "black").getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("mode", "name"),
    [("L", "a.png"), ("P", "a.png"), ("CMYK", "a.jpg"), ("1", "a.png"), ("LA", "a.png"), ("RGB", "a.webp")],
)
def test_every_mode_loads_as_rgb(quadrants, tmp_path, mode, name):
    quadrants.convert(mode).save(tmp_path / name)
    image = decode_image(tmp_path / name)
    assert image.mode == "RGB" and image.size == (60, 40)
    if mode in ("P", "CMYK", "RGB"):
        assert corner_colors(image) == "rgbb"


def test_sixteen_bit_images_keep_their_brightness(tmp_path):
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "a.png")
    assert decode_image(tmp_path / "a.png").getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_unreadable_file_is_named(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png: "):
        decode_image(tmp_path / "broken.png")


def test_aspect_ratio_is_preserved_and_the_excess_is_cropped(quadrants):
    centered = resize_and_crop(quadrants, (40, 40))  # both upper colours in equal parts
    assert centered.shape == (3, 40, 40)
    assert (centered[0, :20] > 0).float().mean() == 0.5
    assert torch.equal(resize_and_crop(quadrants, (40, 40), crop_position=(0, 0))[0, 2, :30], torch.ones(30))
    assert (resize_and_crop(quadrants, (40, 40), crop_position=(1, 0))[1, 2] > 0).sum() == 30


def test_circle_stays_round():
    yy, xx = np.mgrid[:300, :600]
    disc = (((yy - 150) ** 2 + (xx - 300) ** 2) < 100**2).astype(np.uint8) * 255
    tile = resize_and_crop(Image.fromarray(np.repeat(disc[..., None], 3, 2)), (60, 60))[0] > 0
    assert tile.any(0).sum() == tile.any(1).sum() == 40


def test_flip_mirrors(quadrants):
    assert torch.equal(resize_and_crop(quadrants, (40, 40), flip=True), resize_and_crop(quadrants, (40, 40)).flip(2))


def test_black_is_minus_one_and_white_is_one():
    assert resize_and_crop(Image.new("RGB", (4, 4), "black"), (4, 4)).unique().tolist() == [-1]
    assert resize_and_crop(Image.new("RGB", (4, 4), "white"), (4, 4)).unique().tolist() == [1]
