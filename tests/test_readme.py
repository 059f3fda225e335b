"""The README is correct: its commands compose, its images and files exist."""

import re
import shlex

import pytest
from conftest import ROOT
from test_config import compose_checked_config

from sdft.__main__ import PROGRAMS
from sdft.sweeps.grid import build_search_space, expand_grid, is_range_override, parameter_values, search_space_corners
from sdft.sweeps.sweep import read_sweep_file, split_sweep_overrides

README = (ROOT / "README.md").read_text()
PAGES = README + "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
COMMANDS = set(re.findall(r"python (train|evaluate)\.py((?: [^\n#`·]*)?)", PAGES))


def split_overrides(text: str) -> list[str]:
    arguments = [argument for argument in shlex.split(text.strip()) if not argument.startswith("-")]
    return [argument for argument in arguments if argument not in ("&&", "…")]


@pytest.mark.parametrize(("program", "arguments"), sorted(COMMANDS), ids=lambda value: value.strip() or "plain")
def test_every_command_composes_and_matches_its_signatures(program, arguments):
    overrides = split_overrides(arguments)
    is_sweep = re.search(r" -m\b| sweeps=", arguments)
    compose_checked_config(*(list_first_job(overrides) if is_sweep else overrides), config=program)


def list_first_job(overrides: list[str]) -> list[str]:
    """The overrides of the first job of a sweep or a search; of a single run, all overrides."""
    files = [read_sweep_file(text.removeprefix("sweeps=")) for text in overrides if text.startswith("sweeps=")]
    file = files[0] if files else {"method": "grid", "parameters": {}}
    _, job_overrides = split_sweep_overrides([text for text in overrides if not text.startswith("sweeps=")])
    if file["method"] == "grid" and not any(is_range_override(text) for text in job_overrides):
        return expand_grid(parameter_values(file["parameters"]), job_overrides)[0]
    space, fixed = build_search_space(file["parameters"], job_overrides)
    return [*fixed, *(f"{key}={value}" for key, value in zip(space, search_space_corners(space)[0], strict=True))]


PROGRAM_COMMANDS = set(re.findall(r"`sdft (\w+)((?: [^\n#`·]*)?)`", PAGES))


@pytest.mark.parametrize(("name", "arguments"), sorted(PROGRAM_COMMANDS), ids=lambda value: value.strip() or "plain")
def test_every_program_takes_the_listed_options(name, arguments):
    assert name in PROGRAMS
    if name != "compare":  # takes folders, no config
        compose_checked_config(*split_overrides(arguments), config=name)


def test_the_pages_have_commands():
    assert len(COMMANDS) > 10 and len(PROGRAM_COMMANDS) > 10


def test_the_two_commands_are_on_the_first_screen():
    first = README.splitlines()[:40]
    assert sum(line.startswith("    python3 -m venv .venv") for line in first) == 2


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!http)[^)#]+)\)", README))
def test_every_link_target_exists(path):
    assert (ROOT / path).exists()
