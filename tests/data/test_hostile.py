"""A folder of unusable files: one report names each, nothing crashes, and no file outside the folder is read."""

import json
import os
import struct
import subprocess
import sys
import unicodedata
import zlib

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from sdft.data.image_folder import ImageFolder


def bomb(side: int) -> bytes:
    """A black one-bit PNG of `side` x `side` pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" * (1 + side // 8)
    pixels = zlib.compress(row * side, 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """(folder, names in the error, stems of usable images)."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hostile"
    (folder / "deep").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)
    good = Image.fromarray(noise)

    def write_caption(name: str, text: str = "a thing") -> None:
        (folder / name).with_suffix(".txt").write_text(text)

    good.save(folder / "truncated.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "truncated.jpg").read_bytes()[:900])
    (folder / "empty.png").touch()
    (folder / "bomb.png").write_bytes(bomb(12_000))
    (folder / "text.png").write_text("not an image")
    good.save(tmp_path / "secret.png")
    os.symlink(tmp_path / "secret.png", folder / "link.png")
    good.save(folder / "bare.png")
    good.save(folder / "blank.png")
    good.save(folder / "nulls.png")
    good.save(folder / "latin.png")
    good.save(folder / "masked.png")
    Image.new("L", (5, 5), 255).save(folder / "masked.mask.png")
    Image.new("L", (48, 64), 255).save(folder / "unpaired.mask.png")
    for name in ("truncated.jpg", "empty.png", "bomb.png", "text.png", "link.png", "masked.png"):
        write_caption(name)
    write_caption("blank.png", " \n\n")
    write_caption("nulls.png", "a\0thing")
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))

    good.save(folder / "anim.gif", save_all=True, append_images=[good.rotate(90, expand=False)])
    good.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(folder / "deep16.png")
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    good.save(folder / "long.png")
    exif = Image.Exif()
    exif[0x0112] = 99
    good.save(folder / "exif.jpg", exif=exif.tobytes())
    good.save(folder / "deep" / "UPPER.PNG")
    good.save(folder / unicodedata.normalize("NFD", "caf\u00e9.png"))
    for name in ("anim.gif", "cmyk.jpg", "deep16.png", "pixel.png", "exif.jpg", "deep/UPPER.PNG"):
        write_caption(name)
    write_caption("long.png", "token " * 2000)
    (folder / unicodedata.normalize("NFC", "caf\u00e9.txt")).write_text("a caf\u00e9")
    rows = [{"file_name": "../secret.png", "text": "x"}, {"file_name": "gone.png", "text": "x"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    bad = [
        "truncated.jpg",
        "empty.png",
        "bomb.png",
        "text.png",
        "link.png",
        "bare.png",
        "blank.png",
        "nulls.txt",
        "latin.txt",
    ]
    bad += ["masked.mask.png", "unpaired.mask.png", "metadata.jsonl:1", "metadata.jsonl:2"]
    return folder, bad, {"anim", "cmyk", "deep16", "pixel", "long", "exif", "UPPER", "caf\u00e9"}


def test_one_line_names_every_unusable_file(hostile):
    folder, bad, _ = hostile
    with pytest.raises(ValueError) as refusal:
        ImageFolder(str(folder))
    line = str(refusal.value)
    assert all(name in line for name in bad) and "\n" not in line
    assert "144" in line or "12000x12000" in line
    assert "; " in line and "data.on_error=skip" in line.rpartition("; ")[2]


def test_no_file_outside_the_folder_is_opened(hostile, monkeypatch):
    folder, opened, image_open = hostile[0], [], Image.open
    monkeypatch.setattr(
        Image, "open", lambda file, *args, **kwargs: opened.append(str(file)) or image_open(file, *args, **kwargs)
    )
    ImageFolder(str(folder), on_error="skip")
    assert len(opened) > 10 and not any("link.png" in name or "secret.png" in name for name in opened)


def test_skip_omits_and_reports_unusable_files(hostile):
    folder, bad, good = hostile
    source = ImageFolder(str(folder), on_error="skip")
    assert {unicodedata.normalize("NFC", file.stem) for file in source.files} == good
    skipped_files = "; ".join(source.skipped_files())
    assert all(name in skipped_files for name in bad)
    for index in range(len(source)):
        image = source[index].image
        assert image.mode == "RGB" and image.size == source.sizes()[index]


@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak memory from /proc")
@pytest.mark.slow
def test_inspect_names_unusable_files_in_little_memory(hostile):  # S3-34
    folder, bad, good = hostile
    overrides = [f"data.path={folder}", "data.on_error=skip", "resolution=64"]
    program = (
        "import runpy\n"
        "runpy.run_module('sdft.apps.inspect_dataset', run_name='__main__')\n"
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *overrides],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"data       {len(good)} images" in done.stdout and (folder.parent / "data.png").is_file()
    assert all(name in done.stderr for name in bad) and " 77 tokens; " in done.stderr
    assert "identical images: " in done.stderr and "near-duplicate images: " in done.stderr
    assert int(done.stdout.split("VmHWM:")[1].split()[0]) < 2**20  # kilobytes: 1 GB
