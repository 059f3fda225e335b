"""Image dataset: a sized collection of captioned images with their sizes, digests and prompts."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from sdft.data.compact_lists import share_equal
from sdft.data.content_index import ContentRecord, ContentTable
from sdft.data.file_index import ROW_TYPE, RecordTable, map_in_threads
from sdft.data.inventory import Inventory


@dataclass
class CaptionedImage:
    image: Image.Image  # RGB, upright
    caption: str
    name: str  # for error messages
    mask: Image.Image | None = None  # same size; white is trained on, None is all of the image


@dataclass
class EvaluationSpec:
    """Ground truth for scoring generated images: images of `prompts` are matched against the captions in `caption_labels`.

    `caption_labels` maps a caption to its label on each axis, such as {"style": "neon", "digit": "five"}. `scoring_prompts`
    are the captions behind the prompts, if a template changed these; `real` holds real images of the prompts.
    """

    prompts: list[str]
    caption_labels: dict[str, dict[str, str]]
    scoring_prompts: list[str] | None = None
    real: "ImageDataset | None" = None


class ImageDataset:
    """Base class of datasets; the default of an optional method means "not available"."""

    @cached_property
    def content_cache(self) -> dict[int, ContentRecord] | ContentTable:
        """Records of the images that have been inspected, by index; a table once all have been."""
        return {}

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> CaptionedImage:
        """Decode one image; raises `ValueError` naming the file if it is unreadable."""
        raise NotImplementedError

    def load_image(self, index: int, size: tuple[int, int]) -> CaptionedImage:
        """Like `[index]`, but the image may be decoded at lower resolution if it still covers `size`."""
        return self[index]

    def inspect(self, index: int) -> ContentRecord:
        """Size and digest of an image and its mask; cached."""
        if index not in self.content_cache:
            self.content_cache[index] = self.read_record(index)
        return self.content_cache[index]

    def read_record(self, index: int) -> ContentRecord:
        """Decode an image for `inspect`; raises `ValueError` like `[index]`."""
        sample = self[index]
        parts = [sample.image, *([sample.mask] if sample.mask else [])]
        content = b"".join(repr(part.size).encode() + part.tobytes() for part in parts)
        return ContentRecord(*sample.image.size, hashlib.sha256(content).hexdigest())

    def save_records(self) -> None:
        """Save the records of all images for later runs, if the dataset can."""

    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each upright image."""
        if not isinstance(self.content_cache, ContentTable):
            self.content_cache = ContentTable(map_in_threads(self.inspect, range(len(self))))
            self.save_records()
        return share_equal(map(tuple, self.content_cache.sizes.tolist()))

    def digest(self, index: int) -> str:
        """Hash of the content of image and mask."""
        return self.inspect(index).digest

    def image_names(self) -> list[str]:
        """A name of each image that stays the same from run to run; decodes no image."""
        return [f"image {index}" for index in range(len(self))]

    def captions(self) -> list[str]:
        """The first caption of each image; decodes no image."""
        raise NotImplementedError

    def all_captions(self) -> list[list[str]]:
        """All captions of each image; training draws one of them."""
        return [[caption] for caption in self.captions()]

    @property
    def cycles_captions(self) -> bool:
        """Whether training uses the captions of an image in turn, one per epoch, instead of drawing one."""
        return False

    def prompts(self) -> list[str]:
        """Default prompts for validation images."""
        distinct = {}
        for text, *_ in self.all_captions():
            distinct[text] = None
            if len(distinct) == 4:
                break
        return list(distinct)

    def evaluation_spec(self) -> EvaluationSpec | None:
        """Ground truth for scoring generated images, if the dataset has it."""
        return None

    def check_content(self, index: int) -> None:
        """Raise `ValueError` if the files of an image no longer have the content behind `digest`."""

    def file_records(self) -> RecordTable:
        """Records and relative names of the files, if the dataset consists of files."""
        return RecordTable(np.zeros(0, ROW_TYPE))

    def skipped_files(self) -> list[str]:
        """Errors of files that cannot be used."""
        return []

    def inventory(self) -> Inventory:
        """What was used, and what was seen but not used."""
        return Inventory()

    def describe(self) -> str:
        """One line for the run header."""
        raise NotImplementedError
