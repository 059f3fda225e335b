"""Texts, tables, shards and images have limits, which are named before memory is used."""

import gzip
import io
import json
import tarfile
import tracemalloc

import pytest
from PIL import Image

import sdft.data.metadata_tables as tables
import sdft.data.prompts as prompts
from sdft.data.image_folder import ImageFolder
from sdft.data.images import MAX_COVERING_PIXELS, crop_with_mask, resize_and_crop
from sdft.data.prompts import MAX_CAPTION_CHARS, MAX_LINE_CHARS, MAX_TEXT_BYTES, read_prompts
from sdft.data.webdataset import WebDatasetShards


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 32)).save(tmp_path / "images" / "a.png")
    return tmp_path / "images"


@pytest.fixture
def peak():
    """A function that returns the peak of traced memory in MB."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()


def write_sparse_text(file, size: int = 3 * 10**9):
    with open(file, "wb") as stream:
        stream.truncate(size)


@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl", "metadata.csv"])
def test_files_of_gigabytes_are_refused_in_little_memory(folder, peak, name):
    write_sparse_text(folder / name)
    with pytest.raises(ValueError, match=rf"{name}: .*more than \d+ (bytes|characters)"):
        ImageFolder(str(folder))
    assert peak() < 30


def test_long_captions_are_refused_and_named(folder):
    text = "x" * (MAX_CAPTION_CHARS + 1)
    (folder / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.txt: .*{MAX_CAPTION_CHARS}"):
        ImageFolder(str(folder))
    for name, content in {
        "metadata.jsonl": json.dumps({"file_name": "a.png", "text": text}),
        "metadata.csv": f"file_name,text\na.png,{text}\n",
    }.items():
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=rf"{name}:\d: .*{MAX_CAPTION_CHARS}"):
            ImageFolder(str(folder))
        (folder / name).unlink()
    (folder / "a.txt").write_text(text[:-1])
    assert len(ImageFolder(str(folder)).captions()[0]) == MAX_CAPTION_CHARS


def test_long_lines_and_prompt_files_are_refused(folder, tmp_path):
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": ["x"] * MAX_LINE_CHARS}))
    with pytest.raises(ValueError, match=rf"metadata\.jsonl: .*{MAX_LINE_CHARS}"):
        ImageFolder(str(folder))
    (tmp_path / "prompts.txt").write_text("a cat\n" * (MAX_TEXT_BYTES // 6 + 1))
    with pytest.raises(ValueError, match=rf"prompts\.txt: .*{MAX_TEXT_BYTES}"):
        read_prompts(str(tmp_path / "prompts.txt"))


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_tables_have_a_number_of_rows_and_characters(folder, monkeypatch, name):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"file_name": "a.png", "text": f"text {number}"} for number in range(9)]
    if name == "metadata.parquet":
        parquet.write_table(arrow.Table.from_pylist(rows), folder / name)
    elif name == "metadata.csv":
        (folder / name).write_text("file_name,text\n" + "\n".join(",".join(row.values()) for row in rows))
    else:
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    assert len(ImageFolder(str(folder)).all_captions()[0]) == 9
    for limit in ("MAX_TABLE_ROWS", "MAX_TABLE_CHARS"):
        with monkeypatch.context() as patched, pytest.raises(ValueError, match=rf"{name}: more than .* rows"):
            patched.setattr(tables, limit, 8)
            ImageFolder(str(folder))


def test_a_small_parquet_of_many_rows_is_refused_in_little_memory(folder, peak):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    column = arrow.DictionaryArray.from_arrays(arrow.nulls(11_000_000, arrow.int8()).fill_null(0), ["a.png"])
    parquet.write_table(arrow.table({"file_name": column, "text": column}), folder / "metadata.parquet")
    assert (folder / "metadata.parquet").stat().st_size < 200_000
    with pytest.raises(ValueError, match=r"metadata\.parquet: more than 10000000 rows"):
        ImageFolder(str(folder))
    assert peak() < 30


def build_shard(path, members: dict[str, bytes], **info) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as shard:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.pax_headers = info.get(name, {})
            shard.addfile(member, io.BytesIO(content))


def get_members(folder) -> dict[str, bytes]:
    return {"1.png": (folder / "a.png").read_bytes(), "1.txt": b"an image"}


SPARSE = {  # of 1.txt
    "pax 0.1": {"GNU.sparse.map": "0,8,3000000000,0", "GNU.sparse.size": "3000000000", "GNU.sparse.numblocks": "2"},
    "pax 1.0": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "3000000000"},
    "size": {"size": "3000000000"},
    "negative size": {"size": "-512"},
}


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_members_and_absurd_sizes_are_refused_in_one_line(folder, tmp_path, peak, kind):
    build_shard(tmp_path / "0.tar", get_members(folder), **{"1.txt": SPARSE[kind]})
    with pytest.raises(ValueError, match=r"0\.tar: ") as refusal:
        WebDatasetShards(str(tmp_path / "0.tar"))
    assert "\n" not in str(refusal.value) and peak() < 30


@pytest.mark.parametrize("size", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777\0"])
def test_absurd_sizes_in_the_header_are_refused_in_one_line(folder, tmp_path, size):
    """Base 256, positive and negative, and octal; the checksum is right."""
    build_shard(tmp_path / "0.tar", get_members(folder))
    content = bytearray((tmp_path / "0.tar").read_bytes())
    content[124:136] = size
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"0\.tar: ") as refusal:
        WebDatasetShards(str(tmp_path / "0.tar"))
    assert "\n" not in str(refusal.value)


def test_large_captions_in_shards_are_refused(folder, tmp_path, peak):
    build_shard(tmp_path / "0.tar", get_members(folder) | {"1.txt": b"x" * (MAX_TEXT_BYTES + 1)})
    with pytest.raises(ValueError, match=rf"0\.tar: .*1\.txt: .*{MAX_TEXT_BYTES}"):
        WebDatasetShards(str(tmp_path / "0.tar"))


@pytest.mark.parametrize("name", ["0.tar", "0.tar.gz"])
def test_compressed_shards_are_refused_by_their_content(folder, tmp_path, name):
    build_shard(tmp_path / "plain", get_members(folder))
    (tmp_path / name).write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    with pytest.raises(ValueError, match=rf"{name}: .*compressed with gzip; decompress"):
        WebDatasetShards(str(tmp_path / name))
    (tmp_path / name).unlink()
    build_shard(tmp_path / "0.tar", get_members(folder))
    assert WebDatasetShards(str(tmp_path / "0.tar")).captions() == ["an image"]


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (200_000, 3)])
def test_very_elongated_images_are_enlarged_in_little_memory(monkeypatch, size):
    image, resized, resize = Image.new("RGB", size, "red"), [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *args, **kwargs: resized.append(size) or resize(self, size, *args, **kwargs)
    )  # fmt: skip
    pixels = resize_and_crop(image, (512, 256), (0.9, 0.1))
    assert pixels.shape == (3, 256, 512) and pixels[0].min() == 1
    crop_with_mask(image, Image.new("RGB", size, "white"), (64, 64), (8, 8))
    assert resized and all(width * height < MAX_COVERING_PIXELS for width, height in resized)


def test_the_end_of_an_elongated_image_is_what_the_crop_position_selects():
    image = Image.new("RGB", (60_000, 1), "red")
    image.paste("blue", (0, 0, 30_000, 1))
    assert [resize_and_crop(image, (64, 64), (x, 0.5))[2].mean().item() for x in (0.0, 1.0)] == [1, -1]


def test_text_of_the_allowed_size_is_read_as_before(folder, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfa cat\r\na dog\ra bird\n")
    assert read_prompts(str(tmp_path / "prompts.txt")) == ["a cat", "a dog", "a bird"]
    (tmp_path / "prompts.txt").write_bytes("a cat\na dog".encode("utf-16"))
    assert read_prompts(str(tmp_path / "prompts.txt")) == ["a cat", "a dog"]
    assert list(prompts.read_lines(tmp_path / "prompts.txt")) == ["a cat\n", "a dog"]
