"""The README is true: its commands compose, its pictures and files exist."""

import re
import shlex

import pytest
from conftest import ROOT
from test_config import checked

from sdft.sweep import OWN, jobs, read, values_of

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"python (train|evaluate)\.py((?: [^\n#`·]*)?)", README)


def words(text: str) -> list[str]:
    return [w for w in shlex.split(text.strip()) if not w.startswith("-")]


@pytest.mark.parametrize(("program", "rest"), COMMANDS, ids=lambda value: value.strip() or "plain")
def test_every_command_composes_and_fits_its_signatures(program, rest):
    overrides = [w for w in words(rest) if w not in ("&&",)]
    if overrides and overrides[0].startswith("sweeps="):
        own = [word for word in overrides[1:] if word.split("=")[0] not in OWN]
        overrides = jobs(values_of(read(overrides[0].removeprefix("sweeps="))), own)[0]
    if any("," in w and "[" not in w for w in overrides):  # a sweep: its first job
        overrides = [w.split(",")[0] for w in overrides]
    checked(*overrides, config=program)


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 10


def test_the_two_commands_stand_on_the_first_screen():
    first = README.splitlines()[:40]
    assert sum(line.startswith("    python3 -m venv .venv") for line in first) == 2


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!http)[^)#]+)\)", README))
def test_every_link_leads_somewhere(path):
    assert (ROOT / path).exists()
