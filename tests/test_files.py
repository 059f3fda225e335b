"""Files appear whole or not at all."""

import pytest

from sdft.files import whole


def test_a_file_takes_its_name_only_when_it_is_written(tmp_path):
    path = tmp_path / "deep" / "a.json"
    with whole(path) as file:
        file.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_failure_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole(path) as file:
        file.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
