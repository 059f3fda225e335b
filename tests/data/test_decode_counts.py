"""Images are decoded twice at the first start of a run, to check and to encode them, and not at all at the second."""

import io
import json
import tarfile
from collections import Counter

import pytest
from PIL import Image

import sdft.data.contact_sheet as contact_sheets
from sdft.data.contact_sheet import ContactSheet
from sdft.data.hf_dataset import HuggingFaceDataset
from sdft.data.image_folder import ImageFolder
from sdft.data.latent_cache import fill_caches
from sdft.data.training_dataset import DataSettings
from sdft.data.webdataset import WebDatasetShards
from sdft.runs.hashing import hash_dataset

NAMES = ("a.jpg", "b.png", "c.png")


@pytest.fixture
def image_folder(tmp_path, monkeypatch):
    """Three images with captions, and a mask for one of them."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        Image.effect_noise((40 + number, 32), 60).convert("RGB").save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"image {number}")
    Image.new("L", (41, 32), 255).save(folder / "b.mask.png")
    return folder


@pytest.fixture
def decoded(monkeypatch) -> Counter:
    """How often Pillow has loaded images of each size; images of the caches do not count."""
    counts, load = Counter(), Image.open

    def count_open(file, *args, **kwargs):
        image = load(file, *args, **kwargs)
        counts[image.size] += "contact_sheets" not in str(file)
        return image

    monkeypatch.setattr(Image, "open", count_open)
    return counts


def start(source, model, **options):
    """What a run does with its images before the first step: check, hash, encode, and draw the contact sheet."""
    dataset = DataSettings(**{"resolution": 32, "crop": "center"} | options).build_dataset(source, model)
    digest = hash_dataset(source)
    fill_caches([dataset], model, text=False)
    return digest, dataset.contact_sheet.draw()


def build_folder(folder):
    return ImageFolder(str(folder))


def build_shards(folder):
    path = folder.parent / "0.tar"
    with tarfile.open(path, "w") as shard:
        for name in NAMES:
            shard.add(folder / name, name)
            content = (folder / name).with_suffix(".txt").read_bytes()
            info = tarfile.TarInfo(name.partition(".")[0] + ".txt")
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return WebDatasetShards(str(path))


def build_hub_dataset(folder):
    for file in (*folder.glob("*.txt"), *folder.glob("*.mask.png")):
        file.unlink()
    rows = [json.dumps({"file_name": name, "text": name}) for name in NAMES]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return HuggingFaceDataset(str(folder))


@pytest.mark.parametrize("build", [build_folder, build_shards, build_hub_dataset])
@pytest.mark.parametrize("flip", [False, True])
def test_images_are_decoded_twice_at_the_first_start_and_never_at_the_second(
    image_folder, decoded, tiny, monkeypatch, build, flip
):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", image_folder.parent / "hub")
    model, masks = tiny(), int(build is build_folder)
    first, sheet = start(build(image_folder), model, flip=flip)
    assert decoded == {(40, 32): 2, (41, 32): 2 + 2 * masks, (42, 32): 2}
    decoded.clear()
    second, same_sheet = start(build(image_folder), model, flip=flip)
    assert not decoded.total() and second == first and same_sheet.tobytes() == sheet.tobytes()


def test_a_new_image_is_decoded_twice_and_the_others_at_most_once(image_folder, decoded, tiny):
    model = tiny()
    start(build_folder(image_folder), model)
    decoded.clear()
    Image.effect_noise((50, 32), 60).convert("RGB").save(image_folder / "d.png")
    (image_folder / "d.txt").write_text("image 3")
    start(build_folder(image_folder), model)
    assert decoded.pop((50, 32)) == 2 and max(decoded.values()) <= 1 + 1  # an image and its mask have one size


def test_the_sheet_shows_every_size_and_is_drawn_again_if_its_file_is_damaged(image_folder, monkeypatch):
    monkeypatch.setattr(contact_sheets, "MAX_TILES", 2)
    source = build_folder(image_folder)
    sheet = ContactSheet(source, [(64, 32), (32, 32), (32, 32)])
    assert list(sheet.tiles) == [(1, (32, 32)), (0, (64, 32))]
    image = sheet.draw()
    [file] = contact_sheets.SHEET_CACHE_DIR.glob("*")
    file.write_bytes(file.read_bytes()[:50])
    assert ContactSheet(source, [(64, 32), (32, 32), (32, 32)]).draw().tobytes() == image.tobytes()
    assert image.getpixel((4, 4)) != image.getpixel((0, 0)) == (255, 255, 255)


def test_a_run_draws_its_images_from_the_latents_source(image_folder, decoded, run):
    overrides = ["data=folder", f"data.path={image_folder}", "resolution=32", "steps=1", "batch_size=1", "rank=2"]
    _, first = run(*overrides, "sample_every=0", name="first")
    assert decoded[40, 32] == decoded[42, 32] == 2
    decoded.clear()
    _, second = run(*overrides, "sample_every=0", name="second")
    assert not decoded[40, 32] + decoded[41, 32] + decoded[42, 32]
    assert (first / "data.png").read_bytes() == (second / "data.png").read_bytes()
