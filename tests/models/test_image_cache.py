"""Concurrent runs share generated images: none loses the entries of another."""

import re

import pytest
from PIL import Image

from sdft.models.image_cache import add_to_manifest, generate_missing_images, read_manifest

SETTINGS = {"steps": 4}


def test_entries_of_another_process_are_not_lost(tmp_path):
    assert add_to_manifest(tmp_path, SETTINGS, {"a.png": "1"}, "folder") == {"a.png": "1"}
    other = read_manifest(tmp_path, SETTINGS)
    add_to_manifest(tmp_path, SETTINGS, {"b.png": "2"}, "folder")
    assert add_to_manifest(tmp_path, SETTINGS, other | {"c.png": "3"}, "folder") == {
        "a.png": "1",
        "b.png": "2",
        "c.png": "3",
    }
    assert read_manifest(tmp_path, SETTINGS) == {"a.png": "1", "b.png": "2", "c.png": "3"}
    with pytest.raises(ValueError, match="folder=.*steps=4"):
        add_to_manifest(tmp_path, {"steps": 5}, {}, "folder")


def test_a_title_with_markup_and_escape_sequences_is_plain_text(tmp_path, monkeypatch, capsys):
    class Sampling:
        batch_size = 1

        def sample_batches(self, *_):
            yield [Image.new("RGB", (8, 8))]

    monkeypatch.setenv("FORCE_COLOR", "1")
    title = "generate [/x] \x1b[31m\x07 [bold]lora"
    generate_missing_images({"a.png": ("a cat", 0)}, Sampling(), None, 8, tmp_path, SETTINGS, title)
    printed = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert printed.count(r"generate [/x] \x1b[31m\x07 [bold]lora") >= 2 and "\x07" not in printed
