"""Captions are paired by name; what is missing is named before anything starts."""

import json

import pytest
from PIL import Image

from sdft.data.folder import Folder


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("b.PNG", "a.jpg", "c.webp")):
        Image.new("RGB", (8 + number, 8)).save(tmp_path / name, format="PNG")
    return tmp_path


def write(folder, **captions):
    for stem, text in captions.items():
        (folder / f"{stem}.txt").write_text(text)


def test_captions_are_paired_by_stem(folder):
    write(folder, a="an a\nsecond line", c="a c", b="a b")
    source = Folder(str(folder))
    assert [(source[i].image.width, source[i].caption) for i in range(3)] == [(9, "an a"), (8, "a b"), (10, "a c")]


def test_an_extra_text_file_shifts_nothing(folder):
    write(folder, a="an a", aa="stray", b="a b", c="a c")
    assert Folder(str(folder)).captions() == ["an a", "a b", "a c"]


def test_missing_captions_are_listed_by_file(folder):
    write(folder, b="a b")
    with pytest.raises(ValueError, match=r"no caption for a\.jpg, c\.webp"):
        Folder(str(folder))


def test_an_empty_caption_counts_as_missing(folder):
    write(folder, a=" \n", b="a b", c="a c")
    with pytest.raises(ValueError, match=r"no caption for a\.jpg;"):
        Folder(str(folder))


def test_one_caption_can_stand_in_for_all(folder):
    write(folder, b="a b")
    assert Folder(str(folder), caption="a thing").captions() == ["a thing", "a b", "a thing"]


def test_metadata_gives_captions_by_file_name(folder):
    rows = [{"file_name": name, "text": f"row {name}"} for name in ("c.webp", "a.jpg", "b.PNG")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert Folder(str(folder)).captions() == ["row a.jpg", "row b.PNG", "row c.webp"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"file_name": "gone.jpg", "text": "x"}', r"metadata.jsonl:1: no picture 'gone.jpg'"),
        ('{"file_name": "../a.jpg", "text": "x"}', r"metadata.jsonl:1: no picture '../a.jpg'"),
        ('{"image": "a.jpg", "text": "x"}', r"metadata.jsonl:1: each line is one object with file_name and text"),
        ("nonsense", r"metadata.jsonl:1: each line is one object"),
    ],
)
def test_a_bad_row_is_named(folder, row, told):
    (folder / "metadata.jsonl").write_text(row)
    with pytest.raises(ValueError, match=told):
        Folder(str(folder))


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        Folder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no pictures in it"):
        Folder(str(tmp_path))


def test_every_corrupt_picture_is_named_at_once(folder):
    write(folder, a="an a", b="a b", c="a c")
    (folder / "a.jpg").write_bytes(b"no")
    (folder / "c.webp").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.jpg: not a readable picture .*c\.webp: not a readable picture"):
        Folder(str(folder)).verify()
