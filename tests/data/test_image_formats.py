"""Images are read by content, in every format whose decoder runs no programs."""

import io

import numpy as np
import pytest
from PIL import Image

from sdft.data import folder_listing, image_formats
from sdft.data.image_folder import ImageFolder
from sdft.data.images import decode_image

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)).resize((24, 16))


@pytest.mark.parametrize("suffix", image_formats.PILLOW_SUFFIXES)
def test_every_suffix_is_read(suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    kind = Image.registered_extensions().get(suffix)
    IMAGE.save(tmp_path / "p" / f"a{suffix}", format=kind)
    source = ImageFolder("p", caption="a thing")
    assert source.sizes() == [(24, 16)] and not source.inventory().unused
    assert np.abs(np.asarray(source[0].image).astype(int) - np.asarray(IMAGE)).mean() < 12


def test_the_content_counts_not_the_suffix(tmp_path):
    IMAGE.save(tmp_path / "a.png", format="AVIF")
    assert decode_image(tmp_path / "a.png").size == (24, 16)
    IMAGE.save(tmp_path / "a.png", format="EPS")
    with pytest.raises(ValueError, match=r"a\.png: "):
        decode_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("start", "module", "package"),
    [
        (b"\0\0\0\x24ftypheic", "pillow_heif", "pillow-heif"),
        (b"\xff\x0a\xff\xff", "pillow_jxl", "pillow-jxl-plugin"),
    ],
)
def test_a_missing_package_is_named(start, module, package, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)  # imports fail, as if it was not installed
    (tmp_path / "a.jpg").write_bytes(start.ljust(100, b"\0"))
    for file in (tmp_path / "a.jpg", io.BytesIO((tmp_path / "a.jpg").read_bytes())):
        with pytest.raises(ValueError, match=f"a.jpg: .*pip install {package}"):
            decode_image(file, name="a.jpg")


def test_formats_without_their_package_are_listed_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder_listing, "IMAGE_SUFFIXES", image_formats.PILLOW_SUFFIXES)
    (tmp_path / "p").mkdir()
    for name in ("a.png", "b.HEIC", "c.jxl", "d.cr2"):
        IMAGE.save(tmp_path / "p" / name, format="PNG")
    unused = ImageFolder("p", caption="a thing").inventory().unused
    assert list(unused.values()) == [["b.HEIC"], ["c.jxl"], ["d.cr2"]]
    assert all(package in " ".join(unused) for package in ("pillow-heif", "pillow-jxl-plugin"))


@pytest.mark.parametrize(("suffix", "module"), [("heic", "pillow_heif"), ("jxl", "pillow_jxl")])
def test_extra_formats_are_read_with_their_package(suffix, module, tmp_path):
    plugin = pytest.importorskip(module)
    if suffix == "heic":
        plugin.register_heif_opener()
    IMAGE.save(tmp_path / f"a.{suffix}", quality=95)
    decoded = np.asarray(decode_image(tmp_path / f"a.{suffix}")).astype(int)
    assert np.abs(decoded - np.asarray(IMAGE)).mean() < 12
