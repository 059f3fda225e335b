"""Check a folder before it is published: no local paths, no secrets of the environment, no other types of files."""

import html
import os
import re
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from sdft.config import check_secret
from sdft.models.safetensors_check import check_safetensors
from sdft.runs.files import find_home

PATH_START = re.compile(r"(?=(?:(?<![\w.~-])/+(?P<name>[^/\0]{1,255})|(?<!\w)~)/+(?P<last>[^/\0]{1,255}))")
LETTER_PAIR = re.compile(r"[\w-]{2}")
ESCAPE = re.compile(r"\\(?:u([\da-fA-F]{4})|x([\da-fA-F]{2})|(.))", re.DOTALL)  # of JSON and of Python's repr
MAX_NESTED_ESCAPES = 3  # JSON in a string of a JSON header


def check_publication(folder: Path) -> None:
    """Raise `ValueError` for a local path, a secret of the environment, or a file of another type, such as pickled weights."""
    folders = (find_home(), Path.cwd(), folder.resolve().parent)
    local_paths = {str(path) for path in folders if path and len(path.parts) > 1}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, text = file.relative_to(folder), read_published_text(file)
        if text is None:
            raise ValueError(f"publish: {name} is not publishable; allowed are safetensors, JSON, text and PNG files")
        check_secret(f"publish: {name}", text)
        if path := find_local_path(text, local_paths):
            raise ValueError(f"publish: {name} contains the local path {path!r}; remove it")


def read_published_text(file: Path) -> str | None:
    """The text of a file, of the header of weights, or of an image's metadata; None for a type that is not published."""
    if file.suffix == ".safetensors":
        check_safetensors(file, "publish")
        with open(file, "rb") as stream:
            return stream.read(int.from_bytes(stream.read(8), "little")).decode()
    if file.suffix in (".json", ".md", ".txt"):
        return file.read_text(encoding="utf-8")
    if file.suffix == ".png":
        with Image.open(file) as image:
            return str({key: value for key, value in image.info.items() if isinstance(value, str)})
    return None


def find_local_path(text: str, known: set[str]) -> str | None:
    """A path in `text` that is one of `known`, below one, in the home folder, or has two folders that exist here.

    Words, spaces and punctuation may follow it, and its letters may be escaped as in JSON, HTML or an address.
    """
    for variant in dict.fromkeys(iterate_decoded(text)):
        for path in sorted(known):
            if re.search(rf"{re.escape(path)}(?![\w-])", variant):
                return path
        for match in PATH_START.finditer(variant):
            if path := find_existing_path(match):
                return path
    return None


def iterate_decoded(text: str):
    """Yield `text` without its escapes, one level after another."""
    for _ in range(MAX_NESTED_ESCAPES):
        yield from (text, unquote(text), html.unescape(text))
        text = ESCAPE.sub(decode_escape, text)
    yield text


def decode_escape(match: re.Match) -> str:
    if code := match[1] or match[2]:
        return chr(int(code, 16))
    return {"n": "\n", "r": "\r", "t": "\t"}.get(match[3], match[3])


def find_existing_path(match: re.Match) -> str | None:
    """The existing path at a match of `PATH_START`: two folders below the root, or one in the home folder."""
    last, start = match["last"], match.start("last")
    parent = f"/{match['name']}/" if match["name"] else os.path.expanduser("~/")
    if not os.path.isdir(parent):
        return None
    for end in range(len(last), 0, -1):
        is_name = last[:end].strip(" .") and not LETTER_PAIR.match(match.string, start + end - 1)
        if is_name and os.path.lexists(parent + last[:end]):
            return parent + last[:end]
    return None
