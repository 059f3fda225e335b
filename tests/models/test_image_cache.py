"""Concurrent runs share generated images: none loses the entries of another."""

import pytest

from sdft.models.image_cache import add_to_manifest, read_manifest

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
