"""Datasets of many images are small in memory and when they are sent to workers."""

import gc
import io
import json
import os
import pickle
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from conftest import save_images
from PIL import Image

from sdft.data.compact_lists import PathList, TextLists
from sdft.data.digits import Digits
from sdft.data.hf_dataset import HuggingFaceDataset
from sdft.data.image_folder import ImageFolder
from sdft.data.latent_cache import fill_caches
from sdft.data.training_dataset import DataSettings
from sdft.data.transforms import CaptionTemplate, split_validation
from sdft.data.webdataset import WebDatasetShards

LISTS = [["a", ""], [], ["naïve \u2028 text"], ["b", "c", "d"]]


def test_texts_and_paths_are_returned_as_they_were():
    texts = TextLists(iter(LISTS))
    assert texts == LISTS and len(texts) == 4 and texts[-1] == ["b", "c", "d"]
    with pytest.raises(IndexError):
        texts[4]
    assert list(TextLists([])) == []
    names = ["a.png", os.path.join("sub", "n\udcff.png")]
    paths = PathList(Path("root"), names)
    assert list(paths) == [Path("root", name) for name in names] and list(pickle.loads(pickle.dumps(paths))) == list(
        paths
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return save_images(Digits(), tmp_path / "images", 3, captions=True)


def test_masks_belong_to_their_images(folder):
    for number, left in ((0, 1), (2, 9)):
        mask = Image.new("L", (32, 32), 255)
        mask.paste(0, (0, 0, left, 32))
        mask.save(folder / f"{number}.mask.png")
    source = ImageFolder(str(folder))
    lefts = [source[index].mask and source[index].mask.getbbox()[0] for index in range(3)]
    assert lefts == [1, None, 9] and len({source.digest(index) for index in range(3)}) == 3


def test_a_dataset_does_not_hold_the_model(folder, tiny):
    """Workers that are spawned, as on macOS, get it pickled."""
    model = tiny()
    dataset = DataSettings(32).build_dataset(ImageFolder(str(folder)), model)
    fill_caches([dataset], model, text=True)
    tokenizer_size = len(pickle.dumps(model.tokenizer))
    content = pickle.dumps(dataset)
    assert len(content) < tokenizer_size + 20_000 and b"StableDiffusion" not in content
    sample, other = dataset[5], pickle.loads(content)[5]
    assert sample.keys() == other.keys() and all((sample[name] == other[name]).all() for name in sample)


def open_folder(folder, count):
    """Three files under many names, as a folder of many is slow to write."""
    for number in range(3):
        os.link(folder / f"{number}.png", folder / f"image-{number:06d}.png")
        (folder / f"image-{number:06d}.txt").write_text("a photo")
    names = [f"image-{number % 3:06d}.png" for number in range(count)]
    source = ImageFolder(str(folder))
    records = source.records.select([number % 3 for number in range(count)])

    def build():
        source = ImageFolder(str(folder))
        source.files = PathList(folder, names)
        source.texts = TextLists([f"a photo of thing number {number}"] for number in range(count))
        source.records = records.select(range(count))
        return source

    return build


def open_shards(folder, count):
    path, images = folder.parent / "0.tar", [(folder / f"{number}.png").read_bytes() for number in range(3)]
    with tarfile.open(path, "w") as shard:
        for number in range(count):
            text = f"a photo of thing number {number}".encode()
            for suffix, content in ((".png", images[number % 3]), (".txt", text)):
                info = tarfile.TarInfo(f"image-{number:06d}{suffix}")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
    return lambda: WebDatasetShards(str(path))


def open_hub_dataset(folder, count):
    for file in folder.glob("*.txt"):
        file.unlink()
    rows = [{"file_name": f"{n % 3}.png", "text": f"a photo of thing number {n}"} for n in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return lambda: HuggingFaceDataset(str(folder))


@pytest.mark.parametrize("prepare", [open_folder, open_shards, open_hub_dataset])
def test_many_images_take_at_most_300_bytes_each(folder, tiny, prepare):
    """The images are three contents many times, so that only what each image takes grows."""
    model, count = tiny(), 1000
    open_source = prepare(folder, count)

    def build():
        dataset = DataSettings(32).build_dataset(open_source(), model)
        dataset.plan.draw_epoch(0)
        fill_caches([dataset], model, text=False)
        return dataset

    build()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    dataset = build()
    gc.collect()
    size = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(dataset) == count and size / count < 300 and sys.getsizeof(dataset.sizes) < 10 * count


@pytest.mark.parametrize("settings", [{}, {"extra_resolutions": [64]}])
def test_wrapped_sources_have_the_same_captions_and_draws(folder, tiny, settings):
    training, held_out = split_validation(CaptionTemplate(ImageFolder(str(folder)), "{caption}, new"), 1)
    dataset = DataSettings(32, **settings).build_dataset(training, tiny())
    assert [texts for [texts] in dataset.captions] == training.captions() * (1 + len(settings))
    assert dataset.captions[0][0].endswith(", new") and len(held_out) == 1
