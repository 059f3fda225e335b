"""Captioned images in WebDataset shards: `.tar` files with `KEY.jpg` next to `KEY.txt` or `KEY.json`.

Shards are indexed once and then read at random positions, so runs are reproducible and resumable.
"""

import glob
import io
import json
import os
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sdft.data.captions import choose_captions
from sdft.data.compact_lists import TextList, TextLists
from sdft.data.content_index import ContentIndex, ContentRecord
from sdft.data.dataset import CaptionedImage, ImageDataset
from sdft.data.image_formats import IMAGE_SUFFIXES
from sdft.data.images import DECODER_VERSION, decode_image
from sdft.data.inventory import Inventory
from sdft.data.metadata_tables import parse_captions
from sdft.data.prompts import MAX_TEXT_BYTES

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}  # by first bytes
MAX_READ_BYTES = 2**24  # of tar headers and captions, at once
MAX_EMPTY_READS = 100
MAX_MEMBER_BYTES = 2**29  # of an image


class LimitedReader(io.FileIO):
    """File that refuses reads of absurd length, which headers can ask for, and endless reads behind its end."""

    num_empty = 0

    def read(self, size: int = -1) -> bytes:
        content = super().read(size) if 0 <= size <= MAX_READ_BYTES else None
        self.num_empty += not content
        if content is None or self.num_empty > MAX_EMPTY_READS:
            raise tarfile.ReadError(f"its headers describe {size} bytes, which it does not have")
        return content


@dataclass
class WebDatasetShards(ImageDataset):
    """`path` is a folder of shards or a pattern such as `shards/*.tar`. `caption_column` is the caption key of `KEY.json`."""

    path: str
    caption: str | None = None
    default_caption: str | None = None
    caption_column: str = "text"
    background: str = "white"

    def __post_init__(self):
        path = Path(self.path).expanduser()
        shards = sorted(path.glob("*.tar")) if path.is_dir() else [Path(p) for p in sorted(glob.glob(str(path)))]
        if not shards:
            raise ValueError(
                f"data.path={self.path}: no shards; give a folder of uncompressed .tar files, or a pattern of them"
            )
        self.shards, self.sources = shards, Counter()  # how many images have captions of each source
        names, positions = [], array("q")
        self.texts = TextLists(self.read_captions(names, positions))
        self.names, self.positions = TextList(names), np.array(positions).reshape(-1, 3)
        if missing := [name for name, texts in zip(names, self.texts, strict=True) if not texts]:
            raise ValueError(
                f"data.path={self.path}: no caption for {missing[0]} and {len(missing) - 1} more; give data.default_caption"
            )
        if not names:
            raise ValueError(f"data.path={self.path}: no images in its {len(shards)} shards")

    def read_captions(self, names: list[str], positions: array) -> Iterator[list[str]]:
        """Yield the captions of each image; append its name, and its shard, offset and length in bytes."""
        for number, shard in enumerate(self.shards):
            images, texts = self.index_shard(shard)
            for key, (name, offset, length) in images.items():
                own = texts.get(key) or [], "captions from shards"
                captions, source = choose_captions(own, self.caption, self.default_caption)
                self.sources[source] += 1
                names.append(name)
                positions.extend((number, offset, length))
                yield captions

    def index_shard(self, path: Path) -> tuple[dict[tuple, tuple[str, int, int]], dict[tuple, list[str]]]:
        """Return name, offset and length of each image of a shard, and its captions, by folder and stem."""
        images, texts = {}, {}
        try:
            check_uncompressed(path)
            with LimitedReader(path) as file, tarfile.open(fileobj=file, mode="r:") as shard:
                for member in shard:
                    if not member.isreg():
                        continue  # ignore links
                    check_member(member, os.fstat(file.fileno()).st_size)
                    folder, _, base = member.name.rpartition("/")
                    stem, _, suffix = base.partition(".")
                    key, suffix = (folder, stem), f".{suffix.lower()}"
                    if suffix in IMAGE_SUFFIXES:
                        images[key] = (member.name, member.offset_data, member.size)
                    elif suffix in (".txt", ".json"):
                        if member.size > MAX_TEXT_BYTES:
                            raise ValueError(
                                f"{member.name}: more than {MAX_TEXT_BYTES} bytes; at most that is a caption"
                            )
                        content = shard.extractfile(member).read()
                        texts[key] = self.parse_caption_member(member.name, content) or texts.get(key)
        except (tarfile.TarError, ValueError, OSError, RecursionError, OverflowError) as error:
            raise ValueError(f"{path}: not a readable shard ({error})") from None
        return images, texts

    def parse_caption_member(self, name: str, content: bytes) -> list[str]:
        """Return the captions of a `.txt` or `.json` member; raises `ValueError` naming it."""
        try:
            text = content.decode("utf-8-sig")
            if name.lower().endswith(".txt"):
                return parse_captions(text)
            row = json.loads(text)
            return parse_captions(row.get(self.caption_column)) if isinstance(row, dict) else []
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: {error}") from None

    def __len__(self):
        return len(self.names)

    def image_names(self) -> list[str]:
        shards = [self.shards[number].name for number in self.positions[:, 0]]
        return [f"{shard}:{name}" for shard, name in zip(shards, self.names, strict=True)]

    def captions(self) -> list[str]:
        return [texts[0] for texts in self.texts]

    def all_captions(self) -> list[list[str]]:
        return self.texts

    def read_member(self, index: int) -> bytes:
        number, start, length = self.positions[index].tolist()
        with open(self.shards[number], "rb") as shard:
            shard.seek(start)
            return shard.read(length)

    @cached_property
    def content_index(self) -> ContentIndex:
        return ContentIndex(f"shards {Path(self.path).expanduser().resolve()} {self.background} {DECODER_VERSION}")

    def read_record(self, index: int) -> ContentRecord:
        return self.content_index.look_up(
            self.read_member(index),
            lambda key: ContentRecord(*self[index].image.size, f"{key} {self.background} {DECODER_VERSION}"),
        )

    def save_records(self) -> None:
        self.content_index.save()
        del self.content_index  # its records are in the content cache

    def __getitem__(self, index: int) -> CaptionedImage:
        return self.load_image(index, None)

    def load_image(self, index: int, size: tuple[int, int] | None) -> CaptionedImage:
        name = f"{self.shards[self.positions[index, 0]]}:{self.names[index]}"
        image = decode_image(io.BytesIO(self.read_member(index)), self.background, size, name=name)
        return CaptionedImage(image, self.texts[index][0], name)

    def inventory(self) -> Inventory:
        return Inventory(dict(self.sources))

    def describe(self) -> str:
        return f"{self.path}: {len(self)} images in {len(np.unique(self.positions[:, 0]))} shards"


def check_uncompressed(path: Path) -> None:
    """`ValueError` for a compressed shard: its images could not be read at random positions."""
    with open(path, "rb") as file:
        start = file.read(8)
    if kinds := [kind for magic, kind in COMPRESSED.items() if start.startswith(magic)]:
        raise ValueError(f"compressed with {kinds[0]}; decompress it, shards are read at random positions")


def check_member(member: tarfile.TarInfo, shard_size: int) -> None:
    """`ValueError` for a member that is not stored as it is, or is larger than the shard."""
    if member.issparse():
        raise ValueError(f"{member.name}: a sparse file; pack it without --sparse")
    if not 0 <= member.size <= shard_size - member.offset_data:
        raise ValueError(f"{member.name}: {member.size} bytes, which the shard does not have")
    if member.size > MAX_MEMBER_BYTES:
        raise ValueError(f"{member.name}: {member.size} bytes; at most {MAX_MEMBER_BYTES} are read")
