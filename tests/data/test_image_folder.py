"""Captions are paired by name; what is missing is named before anything starts."""

import json

import pytest
from PIL import Image

from sdft.data.image_folder import ImageFolder


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
    source = ImageFolder(str(folder))
    assert [(source[i].image.width, source[i].caption) for i in range(3)] == [(9, "an a"), (8, "a b"), (10, "a c")]


def test_an_extra_text_file_shifts_nothing(folder):
    write(folder, a="an a", aa="stray", b="a b", c="a c")
    assert ImageFolder(str(folder)).captions() == ["an a", "a b", "a c"]


def test_missing_captions_are_listed_by_file(folder):
    write(folder, b="a b")
    with pytest.raises(ValueError, match=r"no caption for a\.jpg, c\.webp"):
        ImageFolder(str(folder))


def test_an_empty_caption_counts_as_missing(folder):
    write(folder, a=" \n", b="a b", c="a c")
    with pytest.raises(ValueError, match=r"no caption for a\.jpg;"):
        ImageFolder(str(folder))


def test_one_caption_can_stand_in_for_all(folder):
    write(folder, b="a b")
    assert ImageFolder(str(folder), caption="a thing").captions() == ["a thing", "a b", "a thing"]


def test_metadata_gives_captions_by_file_name(folder):
    rows = [{"file_name": name, "text": f"row {name}"} for name in ("c.webp", "a.jpg", "b.PNG")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert ImageFolder(str(folder)).captions() == ["row a.jpg", "row b.PNG", "row c.webp"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"file_name": "gone.jpg", "text": "x"}', r"metadata.jsonl:1: no picture 'gone.jpg'"),
        ('{"file_name": "../a.jpg", "text": "x"}', r"metadata.jsonl:1: no picture '../a.jpg'"),
        (
            '{"image": "a.jpg", "text": "x"}',
            r"metadata.jsonl:1: no file_name and text; it has image, text; give data.image_column",
        ),
        ('{"file_name": "a.jpg", "title": "x"}', r"it has file_name, title; give data.caption_column=NAME"),
        ("nonsense", r"metadata.jsonl:1: not a line of JSON"),
    ],
)
def test_a_bad_row_is_named(folder, row, told):
    (folder / "metadata.jsonl").write_text(row)
    with pytest.raises(ValueError, match=told):
        ImageFolder(str(folder))


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        ImageFolder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no pictures in it"):
        ImageFolder(str(tmp_path))


def test_every_corrupt_picture_is_named_at_once(folder):
    write(folder, a="an a", b="a b", c="a c")
    (folder / "a.jpg").write_bytes(b"no")
    (folder / "c.webp").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.jpg: not a readable picture .*c\.webp: not a readable picture"):
        ImageFolder(str(folder)).verify()


def test_a_mask_is_part_of_its_picture_and_cropped_like_it(tmp_path, tiny):
    from sdft.data.training_samples import DataSettings

    Image.new("RGB", (64, 32), "gray").save(tmp_path / "a.PNG", format="PNG")
    mask = Image.new("L", (64, 32))
    mask.paste(255, (32, 0, 64, 32))
    mask.save(tmp_path / "a.mask.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "b.png")
    source = ImageFolder(str(tmp_path), caption="a thing")
    assert len(source) == 2 and source.describe().endswith("2 pictures, 1 with masks")
    source.verify()
    centred = DataSettings(resolution=32, crop="center").samples(source, tiny())
    seen = {int(sample["index"]): sample["mask"] for sample in (centred[0], centred[1])}
    assert seen[1].shape == (1, 8, 8) and seen[1].min() == 1
    assert seen[0][0, :, :4].max() == 0 and seen[0][0, :, 4:].min() == 1
    flipped = centred.load_image_tensors(0, (32, 32), flip=True)["mask"]
    assert flipped[0, :, :4].min() == 1 and flipped[0, :, 4:].max() == 0


@pytest.mark.parametrize(
    ("size", "colour", "told"), [((8, 9), 255, "8x9 px, and its picture 8x8"), ((8, 8), 0, "black all over")]
)
def test_a_mask_that_cannot_be_meant_is_named(tmp_path, size, colour, told):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("L", size, colour).save(tmp_path / "a.mask.png")
    with pytest.raises(ValueError, match=rf"a.mask.png: {told}"):
        ImageFolder(str(tmp_path), caption="a thing").verify()


def test_a_mask_without_its_picture_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "b.mask.png")
    with pytest.raises(ValueError, match="b.mask.png: a mask without its picture"):
        ImageFolder(str(tmp_path), caption="a thing")
