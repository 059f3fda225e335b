"""Jinja templates of HTML pages, with autoescaping."""

from functools import cache
from pathlib import Path

TEMPLATE_FOLDER = Path(__file__).parents[2] / "pages"


@cache
def get_jinja_environment():
    from jinja2 import Environment, FileSystemLoader

    return Environment(loader=FileSystemLoader(TEMPLATE_FOLDER), autoescape=True)
