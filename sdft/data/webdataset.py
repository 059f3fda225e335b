"""Captioned pictures in WebDataset shards: `.tar` files in which `KEY.jpg` stands beside `KEY.txt` or `KEY.json`.

Shards are indexed once and then read at random, so a run over them repeats and resumes like any other.
"""

import glob
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

from sdft.data.dataset import CaptionedImage, ImageDataset
from sdft.data.images import IMAGE_SUFFIXES, decode_image
from sdft.data.metadata_tables import parse_captions as told


@dataclass
class WebDatasetShards(ImageDataset):
    """`path` is a folder of shards or a pattern such as `shards/*.tar`. Of a `KEY.json`, `caption_column` is read."""

    path: str
    caption: str | None = None
    caption_column: str = "text"
    background: str = "white"

    def __post_init__(self):
        place = Path(self.path).expanduser()
        files = sorted(place.glob("*.tar")) if place.is_dir() else [Path(p) for p in sorted(glob.glob(str(place)))]
        if not files:
            raise ValueError(
                f"data.path={self.path}: no shards there; give a folder of .tar files, or a pattern of them"
            )
        self.members: list[tuple[Path, str, int, int]] = []  # file, name, where its bytes begin, how many
        self.texts: list[list[str]] = []
        for file in files:
            self.index(file)
        if bare := [name for (_, name, _, _), texts in zip(self.members, self.texts, strict=True) if not texts]:
            raise ValueError(
                f"data.path={self.path}: no caption for {bare[0]} and {len(bare) - 1} more; give data.caption="
            )
        if not self.members:
            raise ValueError(f"data.path={self.path}: no pictures in its {len(files)} shards")

    def index(self, file: Path) -> None:
        """Where each picture of a shard lies, and its captions."""
        pictures, texts = {}, {}
        try:
            with tarfile.open(file) as shard:
                for member in shard:
                    if not member.isreg():
                        continue  # links lead elsewhere
                    folder, _, base = member.name.rpartition("/")
                    stem, _, ending = base.partition(".")
                    key, ending = (folder, stem), f".{ending.lower()}"
                    if ending in IMAGE_SUFFIXES:
                        pictures[key] = (file, member.name, member.offset_data, member.size)
                    elif ending in (".txt", ".json"):
                        content = shard.extractfile(member).read().decode("utf-8-sig")
                        texts[key] = self.said(content, ending) or texts.get(key)
        except (tarfile.TarError, UnicodeDecodeError, json.JSONDecodeError, OSError) as error:
            raise ValueError(f"{file}: not a readable shard ({error})") from None
        self.members += pictures.values()
        self.texts += [texts.get(key) or ([self.caption] if self.caption else []) for key in pictures]

    def said(self, content: str, ending: str) -> list[str]:
        """The captions of a `.txt` or `.json` member."""
        if ending == ".txt":
            return told(content)
        row = json.loads(content)
        return told(row.get(self.caption_column)) if isinstance(row, dict) else []

    def __len__(self):
        return len(self.members)

    def captions(self) -> list[str]:
        return [texts[0] for texts in self.texts]

    def all_captions(self) -> list[list[str]]:
        return self.texts

    def content(self, index: int) -> bytes:
        file, _, start, length = self.members[index]
        with open(file, "rb") as shard:
            shard.seek(start)
            return shard.read(length)

    def digest(self, index: int) -> str:
        if index not in self.content_cache:
            self.content_cache[index] = f"{hashlib.sha256(self.content(index)).hexdigest()} {self.background}"
        return self.content_cache[index]

    def __getitem__(self, index: int) -> CaptionedImage:
        return self.load_image(index, None)

    def load_image(self, index: int, size: tuple[int, int] | None) -> CaptionedImage:
        where = f"{self.members[index][0]}:{self.members[index][1]}"
        image = decode_image(io.BytesIO(self.content(index)), self.background, size, name=where)
        return CaptionedImage(image, self.texts[index][0], where)

    def describe(self) -> str:
        return f"{self.path}: {len(self)} pictures in {len({file for file, *_ in self.members})} shards"
