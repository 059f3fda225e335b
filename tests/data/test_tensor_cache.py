"""Cached entries are read back bit by bit, or computed again: damage is never taken for sound."""

import pickle

import numpy as np
import pytest
import torch
from conftest import save_images
from safetensors.torch import load_file, save_file

import sdft.data.latent_cache as latent_cache
from sdft.data.digits import Digits
from sdft.data.image_folder import ImageFolder
from sdft.data.latent_cache import compute_missing, fill_caches
from sdft.data.tensor_cache import TensorCache
from sdft.data.training_dataset import DataSettings


def build_entries(count: int = 3) -> dict:
    return {b"k%d" % i: {"a": torch.randn(2, i // 2 + 1), "b": torch.randn(1).bfloat16()} for i in range(count)}


def assert_equal_entry(entry, other) -> None:
    assert entry.keys() == other.keys() and all(torch.equal(entry[name], other[name]) for name in entry)


def test_cache_returns_its_entries(tmp_path):
    entries = build_entries(5)
    for folder in (tmp_path / "s", None):
        cache = TensorCache(folder)
        cache.add_from_all_ranks(dict(list(entries.items())[:2]))
        cache.add_from_all_ranks(dict(list(entries.items())[2:]))
        assert b"k1" in cache and b"k9" not in cache
        for key, entry in entries.items():
            assert_equal_entry(cache[key], entry)
            assert_equal_entry(pickle.loads(pickle.dumps(cache))[key], entry)
        assert cache.drop_damaged(list(entries)) == 0
    assert_equal_entry(TensorCache(tmp_path / "s")[b"k2"], entries[b"k2"])
    assert not list((tmp_path / "s").glob(".*"))


@pytest.mark.parametrize("length", [0, 7, 60, -1])
def test_truncated_file_is_deleted_and_its_entries_computed_again(tmp_path, capsys, length):
    entries = [{b"k%d" % i: {"a": torch.randn(2, i + 1)}} for i in range(3)]
    cache = TensorCache(tmp_path)
    paths = [cache.write(entry) for entry in entries]
    paths[1].write_bytes(paths[1].read_bytes()[:length])
    again = TensorCache(tmp_path)
    assert [b"k%d" % i in again for i in range(3)] == [True, False, True] and not paths[1].exists()
    output = capsys.readouterr().out
    assert output.startswith(f"cache      {paths[1]}: ") and output.count("\n") == 1
    again.add_from_all_ranks(entries[1])
    assert torch.equal(TensorCache(tmp_path)[b"k1"]["a"], entries[1][b"k1"]["a"])


def test_no_flipped_bit_is_taken_for_sound(tmp_path):
    """Anywhere in the file: header, keys, checksums or values."""
    entries = build_entries()
    path = TensorCache(tmp_path).write(entries)
    content = path.read_bytes()
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        cache = TensorCache(tmp_path)
        cache.drop_damaged(list(entries))
        for key in entries:
            if key in cache:
                assert_equal_entry(cache[key], entries[key])


@pytest.mark.parametrize("change", ["appended", "no checksums"])
def test_a_file_of_another_length_or_without_checksums_is_damaged(tmp_path, capsys, change):
    path = TensorCache(tmp_path).write(build_entries())
    if change == "appended":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        save_file({name: t.clone() for name, t in load_file(path).items() if "checksums" not in name}, path)
    cache = TensorCache(tmp_path)
    assert b"k0" not in cache and f"{path}: damaged" in capsys.readouterr().out and not path.exists()


def test_a_damaged_entry_is_computed_again_and_the_others_are_not(tmp_path, capsys):
    cache = TensorCache(tmp_path)
    entries = build_entries(6)
    required = {key: (0, key) for key in entries}

    def compute(arguments):
        computed.append([key for _, key in arguments])
        return [entries[key] for _, key in arguments]

    computed = []
    assert compute_missing(cache, required, compute, "captions") == (6, 6)
    [path] = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[content.index(entries[b"k3"]["a"].numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    computed.clear()
    capsys.readouterr()
    for expected in (1, 0):  # the entry written again is found, beside the damaged one
        cache = TensorCache(tmp_path)
        assert compute_missing(cache, required, compute, "captions") == (6, expected)
        assert_equal_entry(cache[b"k3"], entries[b"k3"])
        assert ("1 damaged captions" in capsys.readouterr().out) == bool(expected)
    assert computed == [[b"k3"]]


@pytest.fixture
def fill_dataset(tmp_path, monkeypatch, tiny):
    """A function that fills the caches of three images in `images/`, and returns their dataset."""
    monkeypatch.chdir(tmp_path)
    folder, model = save_images(Digits(per_digit=1), tmp_path / "images", 3, captions=True), tiny()

    def fill():
        dataset = DataSettings(32).build_dataset(ImageFolder(str(folder)), model)
        fill_caches([dataset], model, text=True)
        return dataset

    return fill


def test_a_flipped_bit_in_latents_or_contexts_is_encoded_again(tmp_path, fill_dataset, capsys):
    def fill():
        dataset = fill_dataset()
        samples = [dataset.load_fixed_sample(index, 0.5) for index in range(3)]
        return [{name: tensor.clone() for name, tensor in sample.items()} for sample in samples]

    before = fill()
    for path in tmp_path.glob("outputs/cache/*/*/*.safetensors"):
        content = np.fromfile(path, np.uint8)
        content[-len(content) // 3] ^= 64
        content.tofile(path)
    capsys.readouterr()
    for one, other in zip(before, fill(), strict=True):
        assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    output = capsys.readouterr().out
    assert "1 damaged latents" in output and "1 damaged captions" in output and "3 latents (1 new)" in output


def test_entries_are_written_while_others_are_computed(tmp_path, monkeypatch):
    """A killed process loses at most the entries of a few seconds."""
    monkeypatch.setattr(latent_cache, "FLUSH_INTERVAL", -1)
    entries = build_entries(70)
    required, calls = {key: (0, key) for key in entries}, []

    def compute(arguments):
        calls.append(len(arguments))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [entries[key] for _, key in arguments]

    with pytest.raises(KeyboardInterrupt):
        compute_missing(TensorCache(tmp_path), required, compute, "captions")
    assert compute_missing(TensorCache(tmp_path), required, compute, "captions") == (70, 6)


def test_a_read_only_folder_is_read_and_new_entries_stay_in_memory(tmp_path, monkeypatch, fill_dataset, capsys):
    folder = tmp_path / "images"

    def fill():
        dataset = fill_dataset()
        return dataset.load_fixed_sample(len(dataset) - 1, 0.5), capsys.readouterr().out

    (folder / "2.png").rename(tmp_path / "2.png")
    fill()
    (tmp_path / "2.png").rename(folder / "2.png")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(latent_cache, "TemporaryFile", refuse)
    sample, output = fill()
    assert "3 latents (1 new)" in output and "Permission denied; new entries are kept in memory" in output
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    again, output = fill()
    assert "3 latents (1 new)" in output
    assert_equal_entry(sample, again)


def test_a_disk_that_fills_is_named_and_keeps_what_was_written(tmp_path, monkeypatch):
    entries = build_entries(300)
    required, cache, written = {key: (0, key) for key in entries}, TensorCache(tmp_path), TensorCache.write

    def fill_disk(self, entries):
        if list(tmp_path.glob("*.safetensors")):
            raise OSError(28, "No space left on device")
        return written(self, entries)

    monkeypatch.setattr(TensorCache, "write", fill_disk)
    with pytest.raises(ValueError, match=rf"^{tmp_path}: No space left.*cache=ram"):
        compute_missing(cache, required, lambda arguments: [entries[key] for _, key in arguments], "captions")
    cache = TensorCache(tmp_path)
    assert sum(key in cache for key in entries) == 256
