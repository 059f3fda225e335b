"""Images of every Pillow mode, ICC profile and kind of transparency give the exact sRGB colours."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from sdft.apps.morph.image_pair import read_image_pair, resize_to_common_size
from sdft.apps.stylize.style_transfer import load_resized_image
from sdft.data.image_folder import ImageFolder
from sdft.data.images import ImageNotes, decode_image, to_upright_rgb

RED = (200, 60, 60)
P3_RED = (219, 37, 49)  # the sRGB values of RED in Display P3
HALF_ON_BLUE = tuple((np.array(RED) * 128 + np.array((0, 0, 255)) * 127 + 127) // 255)


def build_profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    """An ICC profile, version 2."""
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(79)
    white = b"XYZ " + bytes(4) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    tags = {b"desc": text, b"wtpt": white, b"cprt": b"text" + bytes(8), **tags}
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s6H", start + len(body), b"lcms", 0x02100000, kind, space, pcs, 2026, 1, 1, 0, 0, 0)
    head = (head + b"acsp" + bytes(28)).ljust(68, b"\0") + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def build_rgb_profile(*primaries) -> bytes:
    tags = {
        f"{name}XYZ".encode(): b"XYZ " + bytes(4) + b"".join(map(fixed, xyz))
        for name, xyz in zip("rgb", primaries, strict=True)
    }
    return build_profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(2.2)))


def build_cmyk_profile() -> bytes:
    """Black alone darkens; the other inks are white."""
    tables = bytes(range(256))
    identity = b"".join(map(fixed, (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    lut = (
        b"mft1"
        + bytes(4)
        + bytes((4, 3, 2, 0))
        + identity
        + tables * 4
        + bytes((255, 128, 128, 0, 128, 128)) * 8
        + tables * 3
    )
    return build_profile(b"CMYK", {b"A2B0": lut}, b"prtr", b"Lab ")


P3 = build_rgb_profile((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
GREY = build_profile(b"GRAY", {b"kTRC": curve(1.0)})
CMYK = build_cmyk_profile()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PROFILES = {"none": b"", "sRGB": SRGB, "P3": P3, "grey": GREY, "CMYK": CMYK, "damaged": b"none", "truncated": P3[:200]}
MODES = {  # a colour in each mode, and its RGB value without profile
    "1": (255, (255,) * 3),
    "L": (128, (128,) * 3),
    "LA": ((128, 255), (128,) * 3),
    "La": ((128, 255), (128,) * 3),
    "P": (1, RED),
    "PA": ((1, 255), RED),
    "RGB": (RED, RED),
    "RGBA": ((*RED, 255), RED),
    "RGBa": ((*RED, 255), RED),
    "RGBX": ((*RED, 0), RED),
    "CMYK": ((55, 195, 195, 0), RED),
    "I": (0x80FF, (128,) * 3),
    "I;16": (0x80FF, (128,) * 3),
    "I;16L": (0x80FF, (128,) * 3),
    "I;16B": (0x80FF, (128,) * 3),
    "F": (0.5, (128,) * 3),
    "YCbCr": ((102, 104, 198), (200, 60, 59)),
    "HSV": ((0, 179, 200), (200, 60, 60)),
    "LAB": ((128, 128, 128), (119, 119, 119)),
}
GREYS = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "F"}


def build_image(mode: str, colour, alpha: int | None = None) -> Image.Image:
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") and alpha is not None:
        colour = (*colour[:-1], alpha)
    image = Image.new(mode, (4, 3), colour)
    if mode in ("P", "PA"):
        image.putpalette([0, 0, 0, *RED, 9, 9, 9])
    return image


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_and_profile_gives_exact_colours(mode, profile):
    colour, expected = MODES[mode]
    image = build_image(mode, colour)
    image.info["icc_profile"] = PROFILES[profile]
    space = "grey" if mode in GREYS else "CMYK" if mode == "CMYK" else "LAB" if mode == "LAB" else "RGB"
    is_damaged = profile in ("damaged", "truncated") or (profile in ("P3", "sRGB") and space == "CMYK")
    is_damaged |= (profile == "grey" and space != "grey") or (profile == "CMYK" and space != "CMYK")
    if space == "RGB" and profile == "P3":
        expected = P3_RED
    if space == "grey" and profile == "grey":
        expected = (255,) * 3 if mode == "1" else (188,) * 3  # 128 / 255 is linear light
    if space == profile == "CMYK":
        expected = (255,) * 3
    result = to_upright_rgb(image, "blue")
    assert np.abs(np.array(result.getpixel((1, 1))) - expected).max() <= (0 if profile in ("none", "sRGB") else 1)
    assert result.mode == "RGB" and result.size == (4, 3)
    assert result.info["notes"] == (ImageNotes.DAMAGED_PROFILE if is_damaged and space != "LAB" else 0)


@pytest.mark.parametrize("profile", ["none", "P3", "grey"])
@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_transparency_is_composited_after_the_profile(mode, profile):
    colour, expected = MODES[mode]
    if mode in ("La", "RGBa"):  # premultiplied
        colour = (*(value * 128 // 255 for value in colour[:-1]), 128)
    image = build_image(mode, colour, 128)
    image.info["icc_profile"] = PROFILES[profile]
    if (profile, mode in GREYS) in (("P3", False), ("grey", True)):
        expected = P3_RED if profile == "P3" else (188,) * 3
    blended = np.array(expected) * (128 / 255) + np.array((0, 0, 255)) * (127 / 255)
    assert np.abs(np.array(to_upright_rgb(image, "blue").getpixel((0, 0))) - blended).max() <= 2


def save_png(depth: int, kind: int, samples: list[int], transparent: list[int], palette=b"") -> io.BytesIO:
    """A PNG of 2 x 1 pixels; `samples` are its bytes, `transparent` the 16-bit values of its tRNS chunk."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, 1, depth, kind, 0, 0, 0)
    trns = bytes(transparent) if palette else struct.pack(f">{len(transparent)}H", *transparent)
    chunks = [(b"IHDR", header), (b"PLTE", palette), (b"tRNS", trns), (b"IDAT", zlib.compress(bytes([0, *samples])))]
    content = b"".join(chunk(name, data) for name, data in chunks if data)
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("depth", "kind", "samples", "transparent", "opaque"),
    [
        (1, 0, [0b01000000], [0], (255,) * 3),
        (2, 0, [0b10110000], [2], (255,) * 3),
        (4, 0, [0x7C], [7], (204,) * 3),
        (8, 0, [100, 200], [100], (200,) * 3),
        (16, 0, [0x64, 0x01, 0x64, 0x02], [0x6401], (100,) * 3),
        (8, 2, [9, 8, 7, *RED], [9, 8, 7], RED),
        (16, 2, [9, 1, 8, 2, 7, 3, 200, 0, 60, 0, 60, 0], [0x0901, 0x0802, 0x0703], RED),
        (8, 3, [0, 1], [0], RED),
        (8, 3, [0, 1], [0, 255], RED),
    ],
)
def test_a_transparent_value_of_any_depth_is_transparent(depth, kind, samples, transparent, opaque):
    palette = bytes((9, 9, 9, *RED)) if kind == 3 else b""
    image = decode_image(save_png(depth, kind, samples, transparent, palette), "blue", name="a.png")
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 255), opaque]


def test_half_transparent_palette_entries_keep_their_alpha():
    image = decode_image(save_png(8, 3, [0, 1], [128, 255], bytes((*RED, 9, 9, 9))), "blue", name="a.png")
    assert np.abs(np.array(image.getpixel((0, 0))) - HALF_ON_BLUE).max() <= 1 and image.getpixel((1, 0)) == (9, 9, 9)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0.0, 0.5, 1.0], np.float32, [0, 128, 255]),
        ([0.0, 100.4, 255.0], np.float32, [0, 100, 255]),
        ([0, 0x8000, 0xFFFF], np.int32, [0, 128, 255]),
        ([0, 7, 255], np.int32, [0, 7, 255]),
        ([0, 1.5, 2], np.float32, None),
        ([0, np.nan, 1], np.float32, None),
        ([-1.0, 0, 1], np.float32, None),
        ([0, 1, 70_000], np.int32, None),
        ([-1, 0, 255], np.int32, None),
    ],
)
def test_values_of_32_bits_have_one_meaning_or_are_refused(values, dtype, expected, tmp_path):
    Image.fromarray(np.array([values], dtype)).save(tmp_path / "a.tif")
    if expected is None:
        with pytest.raises(ValueError, match=r"a\.tif: .*save it with"):
            decode_image(tmp_path / "a.tif")
    else:
        assert [decode_image(tmp_path / "a.tif").getpixel((x, 0)) for x in range(3)] == [(v,) * 3 for v in expected]


def test_twelve_bits_fill_the_range(tmp_path):
    samples = bytes((0x80, 0x0F, 0xFF))  # 0x800 and 0xFFF
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(samples))]
    directory = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<I", 12) + samples + b"\0" + struct.pack("<H", len(tags)) + directory + bytes(4)
    (tmp_path / "a.tif").write_bytes(content)
    assert [decode_image(tmp_path / "a.tif").getpixel((x, 0)) for x in (0, 1)] == [(128,) * 3, (255,) * 3]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
def test_profiles_in_files_are_applied(suffix, tmp_path):
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}, "avif": {"quality": 100}}
    options = {**options.get(suffix, {}), "icc_profile": P3}
    Image.new("RGB", (32, 32), RED).save(tmp_path / f"a.{suffix}", **options)
    assert np.abs(np.array(decode_image(tmp_path / f"a.{suffix}").getpixel((9, 9))) - P3_RED).max() <= 2


def test_cmyk_files_use_their_profile(tmp_path):
    for suffix in ("jpg", "tif"):
        Image.new("CMYK", (32, 32), (55, 195, 195, 0)).save(tmp_path / f"a.{suffix}", icc_profile=CMYK)
        assert decode_image(tmp_path / f"a.{suffix}").getpixel((9, 9)) == (255, 255, 255)


def test_a_damaged_profile_and_later_frames_are_named_by_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    image = Image.new("RGB", (32, 32), RED)
    image.save(tmp_path / "p" / "a.png", icc_profile=b"none")
    for suffix in ("gif", "png", "webp", "tif", "avif"):
        image.save(tmp_path / "p" / f"{suffix}.{suffix}", save_all=True, append_images=[Image.new("RGB", (32, 32))])
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\xff\xff\0\0\0\x01\0\0\0\0\0\0"
    image.save(tmp_path / "p" / "exif.jpg", exif=exif)
    image.save(tmp_path / "p" / "plain.png", icc_profile=SRGB)
    for _ in range(2):  # the second time from the index
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            notes = ImageFolder("p", caption="a thing").inventory().notes
        assert sorted(map(sorted, notes.values())) == [
            ["a.png"],
            ["avif.avif", "gif.gif", "png.png", "tif.tif", "webp.webp"],
            ["exif.jpg"],
        ]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_applied_once(suffix, orientation, tmp_path):
    image = Image.fromarray(np.arange(32 * 16, dtype=np.uint16).reshape(32, 16).astype(np.uint8)).convert("RGB")
    image.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif.tobytes() if suffix != "tif" else exif)
    upright = decode_image(tmp_path / f"a.{suffix}")
    corner = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[orientation]
    assert upright.size == ((16, 32) if orientation < 5 else (32, 16))
    position = [2 if edge == 0 else side - 3 for edge, side in zip(corner, upright.size, strict=True)]
    assert np.abs(np.array(upright.getpixel(tuple(position))) - RED).max() < 40


def test_stylize_and_morph_read_the_same_colours_and_name_the_file(tmp_path, tiny, capsys):
    for name, profile in (("a.png", P3), ("b.png", b"none")):
        Image.new("RGB", (32, 32), RED).save(tmp_path / name, icc_profile=profile)
    pair = read_image_pair([tmp_path / "a.png", tmp_path / "b.png"], ["a thing"])
    assert np.abs(np.array(pair[0].image.getpixel((9, 9))) - P3_RED).max() <= 1
    assert any("b.png: " in line and "ICC" in line for line in resize_to_common_size(pair, tiny(), 32)[1])
    assert np.abs(np.array(load_resized_image(tmp_path / "a.png", 32, 8).getpixel((9, 9))) - P3_RED).max() <= 1
    load_resized_image(tmp_path / "b.png", 32, 8)
    assert "b.png: " in capsys.readouterr().out
