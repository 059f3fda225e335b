"""Prompts from a list or a text file; anything else raises a one-line error."""

import pytest
from omegaconf import OmegaConf

from sdft.data.prompts import read_prompts


def test_list_is_returned_as_strings():
    assert read_prompts(OmegaConf.create(["a cat", 7])) == ["a cat", "7"]
    assert read_prompts(None) == []


def test_file_has_one_prompt_per_line(tmp_path):
    (tmp_path / "p.txt").write_bytes("\ufeffa café\r\n\r\n  a dog \n".encode())
    assert read_prompts(str(tmp_path / "p.txt")) == ["a café", "a dog"]


def test_comments_are_no_prompts(tmp_path):
    (tmp_path / "p.txt").write_text("# of the paper\na cat\n\n  # more\n a #1 dog \n")
    assert read_prompts(str(tmp_path / "p.txt")) == ["a cat", "a #1 dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n \n# a comment", "prompts=.*p.txt: .*no prompt"), ("é".encode("latin-1"), "p.txt: not UTF-8")],
)
def test_file_without_prompts_is_refused(tmp_path, content, message):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(str(tmp_path / "p.txt"))


def test_number_is_refused():
    with pytest.raises(ValueError, match="prompts=5: "):
        read_prompts(5)
