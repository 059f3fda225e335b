"""Captioned images from the Hugging Face hub, or from any folder or file that `datasets` loads."""

import io
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sdft.data.captions import choose_captions
from sdft.data.compact_lists import TextLists
from sdft.data.content_index import ContentIndex, ContentRecord
from sdft.data.dataset import CaptionedImage, ImageDataset
from sdft.data.images import DECODER_VERSION, decode_image, to_upright_rgb
from sdft.data.inventory import Inventory
from sdft.data.metadata_tables import parse_captions
from sdft.runs.terminal import describe_error


@dataclass
class HuggingFaceDataset(ImageDataset):
    """`name` and `config` are arguments of `datasets.load_dataset`; `limit` selects the first images."""

    name: str
    config: str | None = None
    split: str = "train"
    image_column: str = "image"
    caption_column: str = "text"
    caption: str | None = None
    default_caption: str | None = None
    background: str = "white"
    limit: int | None = None

    def __post_init__(self):
        try:
            import datasets
        except ModuleNotFoundError:
            raise ValueError("data=hub needs a package that is not installed: pip install datasets") from None
        datasets.disable_progress_bars()
        try:
            rows = datasets.load_dataset(self.name, self.config, split=self.split)
        except Exception as error:  # load_dataset raises many types
            raise ValueError(f"data.name={self.name}: {describe_error(error)}") from None
        for key in ("image_column", "caption_column"):
            is_required = key == "image_column" or not (self.caption or self.default_caption)
            if is_required and getattr(self, key) not in rows.column_names:
                raise ValueError(f"data.{key}={getattr(self, key)}: the dataset has {', '.join(rows.column_names)}")
        self.rows = rows.select(range(min(self.limit, len(rows)))) if self.limit else rows
        column = self.rows[self.caption_column] if self.caption_column in rows.column_names else [None] * len(self.rows)
        self.sources: Counter[str] = Counter()  # how many images have captions of each source
        self.texts = TextLists(map(self.choose_captions, column))
        if missing := [number for number, texts in enumerate(self.texts) if not texts]:
            raise ValueError(
                f"data.name={self.name}: no caption in row {missing[0]} and {len(missing) - 1} more; give data.default_caption"
            )

    def choose_captions(self, value) -> list[str]:
        own = parse_captions(value), f"captions from column {self.caption_column}"
        captions, source = choose_captions(own, self.caption, self.default_caption)
        self.sources[source] += 1
        return captions

    def __len__(self):
        return len(self.rows)

    def image_names(self) -> list[str]:
        return [f"row {index}" for index in range(len(self))]

    def captions(self) -> list[str]:
        return [texts[0] for texts in self.texts]

    def all_captions(self) -> list[list[str]]:
        return self.texts

    @cached_property
    def content_index(self) -> ContentIndex:
        options = f"{self.config} {self.split} {self.image_column} {self.background} {DECODER_VERSION}"
        return ContentIndex(f"hub {self.name} {options}")

    @cached_property
    def encoded_rows(self):
        """The rows without decoding, if they have encoded images, else None."""
        import datasets

        if not isinstance(self.rows.features[self.image_column], datasets.Image):
            return None
        return self.rows.select_columns(self.image_column).cast_column(self.image_column, datasets.Image(decode=False))

    def read_encoded(self, index: int) -> bytes | None:
        """The bytes of an image, if the dataset has them."""
        value = self.encoded_rows[index][self.image_column] if self.encoded_rows is not None else {}
        if value.get("bytes") is None and value.get("path") and Path(value["path"]).is_file():
            return Path(value["path"]).read_bytes()
        return value.get("bytes")

    def read_record(self, index: int) -> ContentRecord:
        if (encoded := self.read_encoded(index)) is None:
            return super().read_record(index)
        return self.content_index.look_up(encoded, lambda _: super(HuggingFaceDataset, self).read_record(index))

    def save_records(self) -> None:
        self.content_index.save()
        del self.content_index  # its records are in the content cache

    def __getitem__(self, index: int) -> CaptionedImage:
        name, encoded = f"{self.name} row {index}", self.read_encoded(index)
        if encoded is None:
            image = to_upright_rgb(self.rows[index][self.image_column], self.background)
        else:
            image = decode_image(io.BytesIO(encoded), self.background, name=name)
        return CaptionedImage(image, self.texts[index][0], name)

    def inventory(self) -> Inventory:
        return Inventory(dict(self.sources))

    def describe(self) -> str:
        return f"{self.name} {self.split}: {len(self)} images"
