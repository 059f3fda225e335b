"""Cached and uncached runs are equal; only changed inputs are encoded again."""

import pytest
import torch
from conftest import read_metric_rows, save_images
from PIL import Image
from test_training_run import assert_tensors_equal, load_adapter

from sdft.data.digits import Digits
from sdft.data.image_folder import ImageFolder
from sdft.data.latent_cache import fill_caches
from sdft.data.training_dataset import DataSettings

EXACT = [
    "optimizer.eps=1e-3",
    "steps=4",
    "flip=true",
    "caption_dropout=0.3",
    "method.text_encoder=false",
    "data.per_digit=2",
]


@pytest.mark.parametrize("cache", ["disk", "ram"])
def test_cached_and_uncached_training_give_the_same_losses_and_weights(shared_run, cache):  # pitfall 24
    _, plain = shared_run(*EXACT, "cache=off")
    _, cached = shared_run(*EXACT, f"cache={cache}")
    assert_tensors_equal(load_adapter(plain), load_adapter(cached), 1e-5)
    for a, b in zip(read_metric_rows(plain), read_metric_rows(cached), strict=True):
        assert float(a["train/loss"]) == pytest.approx(float(b["train/loss"]), abs=1e-5)


def test_workers_read_the_same_cache(shared_run):
    _, one = shared_run(*EXACT, "cache=disk")
    _, two = shared_run(*EXACT, "cache=disk", "workers=2")
    assert_tensors_equal(load_adapter(one), load_adapter(two))


@pytest.fixture
def image_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return save_images(Digits(per_digit=1), tmp_path / "images", 4, captions=True)


def fill_and_read_summary(image_folder, model, capsys, **options) -> str:
    """Fill the caches and return the printed summary."""
    samples = DataSettings(**{"resolution": 32} | options).build_dataset(ImageFolder(str(image_folder)), model)
    fill_caches([samples], model, text=True)
    return capsys.readouterr().out.strip()


def test_only_changed_inputs_are_encoded_again(image_folder, tiny, capsys):  # pitfall 23
    model = tiny()
    assert (
        fill_and_read_summary(image_folder, model, capsys)
        == "cache      4 latents (4 new), 5 captions (5 new) in outputs/cache/"
    )
    assert "4 latents (0 new), 5 captions (0 new)" in fill_and_read_summary(image_folder, model, capsys)
    Image.new("RGB", (32, 32), "red").save(image_folder / "2.png")
    assert "4 latents (1 new), 5 captions (0 new)" in fill_and_read_summary(image_folder, model, capsys)
    (image_folder / "3.txt").write_text("another caption")
    assert "4 latents (0 new), 5 captions (1 new)" in fill_and_read_summary(image_folder, model, capsys)
    assert "8 latents (4 new)" in fill_and_read_summary(image_folder, model, capsys, flip=True)
    assert "4 latents (4 new), 5 captions (0 new)" in fill_and_read_summary(image_folder, model, capsys, resolution=40)
    with torch.no_grad():
        next(model.vae.encoder.parameters()).add_(0.1)
    assert "4 latents (4 new), 5 captions (0 new)" in fill_and_read_summary(image_folder, model, capsys)
    with torch.no_grad():
        next(model.clip_l.parameters()).add_(0.1)
    assert "4 latents (0 new), 5 captions (5 new)" in fill_and_read_summary(image_folder, model, capsys)
    Image.new("L", (32, 32), 255).save(image_folder / "1.mask.png")
    assert "4 latents (1 new)" in fill_and_read_summary(image_folder, model, capsys)


@pytest.mark.slow
def test_random_crops_and_trainable_or_shuffled_text_are_not_cached(image_folder, tiny, run, shared_run):
    model = tiny()
    samples = DataSettings(32, crop="random").build_dataset(ImageFolder(str(image_folder)), model)
    assert fill_caches([samples], model, text=False) == [] and samples.latents is None and samples.texts is None
    module, _ = shared_run(*EXACT, "cache=disk")
    assert module.offloaded_parts == ["vae", "clip_l"]
    assert run("steps=1", name="text")[0].offloaded_parts == ["vae"]
    assert run("steps=1", "method.text_encoder=false", "shuffle_tags=true", name="tags")[0].offloaded_parts == ["vae"]
