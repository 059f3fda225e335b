"""Cached and uncached runs see the same; only what has changed is computed again."""

import pytest
import torch
from conftest import save_images
from PIL import Image
from test_training_run import adapter, assert_same, rows

from sdft.data.digits import Digits
from sdft.data.image_folder import ImageFolder
from sdft.data.latent_cache import TensorCache, fill_caches
from sdft.data.training_samples import DataSettings

EXACT = [
    "optimizer.eps=1e-3",
    "steps=4",
    "flip=true",
    "caption_dropout=0.3",
    "method.text_encoder=false",
    "data.per_digit=2",
]


@pytest.mark.parametrize("cache", ["disk", "ram"])
def test_cached_and_uncached_training_give_the_same_losses_and_weights(shared, cache):  # pitfall 24
    _, plain = shared(*EXACT, "cache=off")
    _, cached = shared(*EXACT, f"cache={cache}")
    assert_same(adapter(plain), adapter(cached), 1e-5)
    for a, b in zip(rows(plain), rows(cached), strict=True):
        assert float(a["train/loss"]) == pytest.approx(float(b["train/loss"]), abs=1e-5)


def test_workers_read_the_same_cache(shared):
    _, one = shared(*EXACT, "cache=disk")
    _, two = shared(*EXACT, "cache=disk", "workers=2")
    assert_same(adapter(one), adapter(two))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return save_images(Digits(per_digit=1), tmp_path / "pictures", 4, captions=True)


def filled(pictures, model, capsys, **options) -> str:
    """The line that says what was made."""
    samples = DataSettings(**{"resolution": 32} | options).samples(ImageFolder(str(pictures)), model)
    fill_caches([samples], model, text=True)
    return capsys.readouterr().out.strip()


def test_only_what_has_changed_is_computed_again(pictures, tiny, capsys):  # pitfall 23
    model = tiny()
    assert (
        filled(pictures, model, capsys) == "cache    4 latents (4 made now), 5 captions (5 made now) in outputs/cache/"
    )
    assert "4 latents (0 made now), 5 captions (0 made now)" in filled(pictures, model, capsys)
    Image.new("RGB", (32, 32), "red").save(pictures / "2.png")
    assert "4 latents (1 made now), 5 captions (0 made now)" in filled(pictures, model, capsys)
    (pictures / "3.txt").write_text("another caption")
    assert "4 latents (0 made now), 5 captions (1 made now)" in filled(pictures, model, capsys)
    assert "8 latents (4 made now)" in filled(pictures, model, capsys, flip=True)
    assert "4 latents (4 made now), 5 captions (0 made now)" in filled(pictures, model, capsys, resolution=40)
    with torch.no_grad():
        next(model.vae.encoder.parameters()).add_(0.1)
    assert "4 latents (4 made now), 5 captions (0 made now)" in filled(pictures, model, capsys)
    with torch.no_grad():
        next(model.text_encoder.parameters()).add_(0.1)
    assert "4 latents (0 made now), 5 captions (5 made now)" in filled(pictures, model, capsys)
    Image.new("L", (32, 32), 255).save(pictures / "1.mask.png")
    assert "4 latents (1 made now)" in filled(pictures, model, capsys)


def test_random_crops_and_learned_or_shuffled_text_are_not_cached(pictures, tiny, run, shared):
    model = tiny()
    samples = DataSettings(32, crop="random").samples(ImageFolder(str(pictures)), model)
    assert fill_caches([samples], model, text=False) == [] and samples.latents is None and samples.contexts is None
    module, _ = shared(*EXACT, "cache=disk")
    assert module.offloaded_parts == ["vae", "text_encoder"]
    assert run("steps=1", name="text")[0].offloaded_parts == ["vae"]
    assert run("steps=1", "method.text_encoder=false", "shuffle_tags=true", name="tags")[0].offloaded_parts == ["vae"]


def test_a_store_gives_back_what_it_was_given_in_every_process(tmp_path):
    entries = {f"k{i}": {"a": torch.randn(2, i + 1), "b": torch.randn(1)} for i in range(3)}
    for folder in (tmp_path / "s", None):
        store = TensorCache(folder)
        store.add_from_all_ranks(entries)
        assert "k1" in store and "k9" not in store
        for key, entry in entries.items():
            assert all(torch.equal(store[key][name], tensor) for name, tensor in entry.items())
    assert torch.equal(TensorCache(tmp_path / "s")["k2"]["a"], entries["k2"]["a"])
    assert not list((tmp_path / "s").glob(".*"))


@pytest.mark.parametrize("left", [0, 7, 60, -1])
def test_what_a_file_that_is_cut_off_held_is_computed_again(tmp_path, capsys, left):
    entries = [{f"k{i}": {"a": torch.randn(2, i + 1)}} for i in range(3)]
    store = TensorCache(tmp_path)
    paths = [store.add(entry) for entry in entries]
    paths[1].write_bytes(paths[1].read_bytes()[:left])
    again = TensorCache(tmp_path)
    assert ["k0" in again, "k1" in again, "k2" in again] == [True, False, True] and not paths[1].exists()
    assert f"cache    {paths[1]}: cut off; what it held is computed again\n" == capsys.readouterr().out
    again.add_from_all_ranks(entries[1])
    assert torch.equal(TensorCache(tmp_path)["k1"]["a"], entries[1]["k1"]["a"])
