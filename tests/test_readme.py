"""The README is true: its commands compose, its pictures and files exist."""

import re
import shlex

import pytest
from conftest import ROOT
from test_config import checked

from sdft.sweeps.grid import build_search_space, expand_grid, is_range_override, parameter_values, search_space_corners
from sdft.sweeps.sweep import read_sweep_file, split_sweep_overrides

README = (ROOT / "README.md").read_text()
PAGES = README + "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
COMMANDS = re.findall(r"python (train|evaluate)\.py((?: [^\n#`·]*)?)", PAGES)


def words(text: str) -> list[str]:
    return [w for w in shlex.split(text.strip()) if not w.startswith("-")]


@pytest.mark.parametrize(("program", "rest"), COMMANDS, ids=lambda value: value.strip() or "plain")
def test_every_command_composes_and_fits_its_signatures(program, rest):
    overrides = [w for w in words(rest) if w not in ("&&", "…")]
    checked(*(first_job(overrides) if program == "train" else overrides), config=program)


def first_job(given: list[str]) -> list[str]:
    """Its words, if they are those of a sweep or a search; else the words themselves."""
    named = [read_sweep_file(word.removeprefix("sweeps=")) for word in given if word.startswith("sweeps=")]
    file = named[0] if named else {"method": "grid", "parameters": {}}
    _, rest = split_sweep_overrides([word for word in given if not word.startswith("sweeps=")])
    if file["method"] == "grid" and not any(is_range_override(word) for word in rest):
        return expand_grid(parameter_values(file["parameters"]), rest)[0]
    space, fixed = build_search_space(file["parameters"], rest)
    return [*fixed, *(f"{key}={value}" for key, value in zip(space, search_space_corners(space)[0], strict=True))]


APPS = re.findall(r"python -m sdft\.apps\.(\w+)((?: [^\n#`·]*)?)", PAGES)


@pytest.mark.parametrize(("name", "rest"), APPS, ids=lambda value: value.strip() or "plain")
def test_every_app_takes_the_words_that_are_shown(name, rest):
    assert (ROOT / "sdft" / "apps" / f"{name}.py").is_file()
    checked(*[word for word in words(rest) if word not in ("&&", "…")], config=name)


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 10


def test_the_two_commands_stand_on_the_first_screen():
    first = README.splitlines()[:40]
    assert sum(line.startswith("    python3 -m venv .venv") for line in first) == 2


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!http)[^)#]+)\)", README))
def test_every_link_leads_somewhere(path):
    assert (ROOT / path).exists()
