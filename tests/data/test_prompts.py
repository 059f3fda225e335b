"""Prompts come as a list or as a file; anything else is told in one line."""

import pytest
from omegaconf import OmegaConf

from sdft.data.prompts import read_prompts


def test_a_list_stays_a_list():
    assert read_prompts(OmegaConf.create(["a cat", 7])) == ["a cat", "7"]
    assert read_prompts(None) == []


def test_a_file_has_one_a_line(tmp_path):
    (tmp_path / "p.txt").write_bytes("\ufeffa café\r\n\r\n  a dog \n".encode())
    assert read_prompts(str(tmp_path / "p.txt")) == ["a café", "a dog"]


@pytest.mark.parametrize(
    ("content", "told"), [(b"\n \n", "no prompt in it"), ("é".encode("latin-1"), "not UTF-8 text")]
)
def test_a_file_without_prompts_is_refused(tmp_path, content, told):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_prompts(str(tmp_path / "p.txt"))


def test_a_number_is_no_prompt():
    with pytest.raises(ValueError, match="prompts=5: give a text file, or a list"):
        read_prompts(5)
