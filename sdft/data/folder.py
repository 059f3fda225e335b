"""Captioned pictures in a folder: `NAME.jpg` beside `NAME.txt`, or a `metadata.jsonl` with `file_name` and `text`."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageColor

from sdft.data.images import ENDINGS, decode
from sdft.data.source import Picture
from sdft.prompts import read_text


@dataclass
class Folder:
    """Pictures are paired with captions by name. `caption` stands in for those that have none."""

    path: str
    caption: str | None = None
    background: str = "white"

    def __post_init__(self):
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise ValueError(f"data.background={self.background}: give a colour such as white or #808080") from None
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise ValueError(f"data.path={self.path}: no such folder")
        self.files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
        if not self.files:
            raise ValueError(f"data.path={self.path}: no pictures in it ({' '.join(ENDINGS)})")
        listed = metadata(folder)
        texts = [listed.get(path) or beside(path) or self.caption for path in self.files]
        if bare := [path for path, text in zip(self.files, texts, strict=True) if not text]:
            raise ValueError(
                f"data.path={self.path}: no caption for {some([str(p.relative_to(folder)) for p in bare])}; "
                'write one into a .txt of the same name, or give all of them data.caption="..."'
            )
        self.texts: list[str] = texts

    def __len__(self):
        return len(self.files)

    def captions(self) -> list[str]:
        return self.texts

    def __getitem__(self, index: int) -> Picture:
        return Picture(decode(self.files[index], self.background), self.texts[index], str(self.files[index]))

    def verify(self) -> None:
        """Decode every picture once; one `ValueError` names all that cannot be read."""

        def fault(path: Path) -> str | None:
            try:
                decode(path, self.background)
            except ValueError as error:
                return str(error)
            return None

        with ThreadPoolExecutor() as threads:
            faults = [text for text in threads.map(fault, self.files) if text]
        if faults:
            raise ValueError(some(faults, "; "))

    def prompts(self) -> list[str]:
        return list(dict.fromkeys(self.texts))[:4]

    def questions(self) -> None:
        return None

    def describe(self) -> str:
        return f"{self.path}: {len(self)} pictures"


def beside(path: Path) -> str | None:
    """The first line of the `.txt` with the picture's name."""
    text = path.with_suffix(".txt")
    if not text.is_file():
        return None
    return next((line.strip() for line in read_text(text).splitlines() if line.strip()), None)


def metadata(folder: Path) -> dict[Path, str]:
    """Captions from `metadata.jsonl`, by path; a row without its picture is an error, a path cannot leave the folder."""
    file = folder / "metadata.jsonl"
    if not file.is_file():
        return {}
    captions = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{file}:{number}: each line is one object with file_name and text") from None
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise ValueError(f"{file}:{number}: no picture {name!r} in this folder")
        captions[path] = str(text).strip()
    return captions


def some(names: list[str], separator: str = ", ", most: int = 5) -> str:
    """The first few, and how many more."""
    more = f"{separator}and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more
