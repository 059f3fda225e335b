"""Templates of pages, which escape whatever they are given."""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "pages"


@cache
def environment():
    from jinja2 import Environment, FileSystemLoader

    return Environment(loader=FileSystemLoader(FOLDER), autoescape=True)
