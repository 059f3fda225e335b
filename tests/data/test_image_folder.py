"""Captions and masks are paired with images by name; errors name the file."""

import json

import pytest
from PIL import Image

from sdft.data.image_folder import ImageFolder


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("b.PNG", "a.jpg", "c.webp")):
        Image.new("RGB", (8 + number, 8)).save(tmp_path / name, format="PNG")
    return tmp_path


def write_captions(folder, **captions):
    for stem, text in captions.items():
        (folder / f"{stem}.txt").write_text(text)


def test_captions_are_paired_by_stem(folder):
    write_captions(folder, a="an a\nsecond line", c="a c", b="a b")
    source = ImageFolder(str(folder))
    assert [(source[i].image.width, source[i].caption) for i in range(3)] == [(9, "an a"), (8, "a b"), (10, "a c")]


def test_unpaired_text_file_is_ignored(folder):
    write_captions(folder, a="an a", aa="stray", b="a b", c="a c")
    assert ImageFolder(str(folder)).captions() == ["an a", "a b", "a c"]


def test_missing_captions_are_listed_by_file(folder):
    write_captions(folder, b="a b")
    with pytest.raises(ValueError, match=r"no caption for a\.jpg, c\.webp"):
        ImageFolder(str(folder))


def test_empty_caption_counts_as_missing(folder):
    write_captions(folder, a=" \n", b="a b", c="a c")
    with pytest.raises(ValueError, match=r"no caption for a\.jpg;"):
        ImageFolder(str(folder))


def test_default_caption_is_used_for_images_without_caption(folder):
    write_captions(folder, b="a b")
    assert ImageFolder(str(folder), default_caption="a thing").captions() == ["a thing", "a b", "a thing"]


def test_metadata_gives_captions_by_file_name(folder):
    rows = [{"file_name": name, "text": f"row {name}"} for name in ("c.webp", "a.jpg", "b.PNG")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert ImageFolder(str(folder)).captions() == ["row a.jpg", "row b.PNG", "row c.webp"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"file_name": "gone.jpg", "text": "x"}', r"metadata.jsonl:1: .*'gone.jpg'"),
        ('{"file_name": "../a.jpg", "text": "x"}', r"metadata.jsonl:1: .*'../a.jpg'"),
        (
            '{"image": "a.jpg", "text": "x"}',
            r"metadata.jsonl:1: no file_name and text; .* image, text; .*data.image_column",
        ),
        (
            '{"file_name": "a.jpg", "title": "x"}',
            r"jsonl:1: no file_name and text; .* file_name, title; .*data.caption_column=",
        ),
        ("nonsense", r"metadata.jsonl:1: .*JSON"),
    ],
)
def test_invalid_row_is_named(folder, row, message):
    (folder / "metadata.jsonl").write_text(row)
    with pytest.raises(ValueError, match=message):
        ImageFolder(str(folder))


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="data.path=.*nowhere: "):
        ImageFolder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="data.path=.*: no images"):
        ImageFolder(str(tmp_path))


def test_every_corrupt_image_is_named(folder):
    write_captions(folder, a="an a", b="a b", c="a c")
    (folder / "a.jpg").write_bytes(b"no")
    (folder / "c.webp").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.jpg: .*c\.webp: "):
        ImageFolder(str(folder))


def test_mask_is_cropped_like_its_image(tmp_path, tiny):
    from sdft.data.training_dataset import DataSettings

    Image.new("RGB", (64, 32), "gray").save(tmp_path / "a.PNG", format="PNG")
    mask = Image.new("L", (64, 32))
    mask.paste(255, (32, 0, 64, 32))
    mask.save(tmp_path / "a.mask.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "b.png")
    source = ImageFolder(str(tmp_path), caption="a thing")
    assert len(source) == 2 and source.describe().endswith("2 images, 1 with masks")
    samples = DataSettings(resolution=32, crop="center").build_dataset(source, tiny())
    masks = {samples.plan.image_index(number): samples[number]["mask"] for number in (0, 1)}
    assert masks[1].shape == (1, 8, 8) and masks[1].min() == 1
    assert masks[0][0, :, :4].max() == 0 and masks[0][0, :, 4:].min() == 1
    flipped = samples.load_image_tensors(0, (32, 32), flip=True)["mask"]
    assert flipped[0, :, :4].min() == 1 and flipped[0, :, 4:].max() == 0


@pytest.mark.parametrize(("size", "colour", "message"), [((8, 9), 255, "8x9 px, .*8x8"), ((8, 8), 0, "entirely black")])
def test_unusable_mask_is_named(tmp_path, size, colour, message):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("L", size, colour).save(tmp_path / "a.mask.png")
    with pytest.raises(ValueError, match=rf"a.mask.png: {message}"):
        ImageFolder(str(tmp_path), caption="a thing")


def test_mask_without_image_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "b.mask.png")
    with pytest.raises(ValueError, match="b.mask.png: "):
        ImageFolder(str(tmp_path), caption="a thing")
