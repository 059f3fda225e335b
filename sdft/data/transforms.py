"""Dataset wrappers: caption template, subset and validation split."""

from array import array
from collections.abc import Iterable
from dataclasses import replace

from sdft.data.compact_lists import TextLists
from sdft.data.dataset import CaptionedImage, EvaluationSpec, ImageDataset
from sdft.data.file_index import RecordTable
from sdft.data.inventory import Inventory
from sdft.rng import draw_permutation

CAPTION_PLACEHOLDER = "{caption}"


class DatasetWrapper(ImageDataset):
    """Forward everything to `source`."""

    def __init__(self, source: ImageDataset):
        self.source = source

    def __len__(self):
        return len(self.source)

    def image_names(self) -> list[str]:
        return self.source.image_names()

    def captions(self) -> list[str]:
        return self.source.captions()

    def __getitem__(self, index: int) -> CaptionedImage:
        return self.source[index]

    def all_captions(self) -> list[list[str]]:
        return self.source.all_captions()

    def load_image(self, index: int, size: tuple[int, int]) -> CaptionedImage:
        return self.source.load_image(index, size)

    def sizes(self) -> list[tuple[int, int]]:
        return self.source.sizes()

    def digest(self, index: int) -> str:
        return self.source.digest(index)

    def prompts(self) -> list[str]:
        return self.source.prompts()

    def evaluation_spec(self) -> EvaluationSpec | None:
        return self.source.evaluation_spec()

    def check_content(self, index: int) -> None:
        self.source.check_content(index)

    def file_records(self) -> RecordTable:
        return self.source.file_records()

    def skipped_files(self) -> list[str]:
        return self.source.skipped_files()

    def inventory(self) -> Inventory:
        return self.source.inventory()

    @property
    def cycles_captions(self) -> bool:
        return self.source.cycles_captions

    def describe(self) -> str:
        return self.source.describe()


class CaptionTemplate(DatasetWrapper):
    """Insert every caption and prompt for `{caption}` in `template`, such as "{caption} in oil" or "a sks dog"."""

    def __init__(self, source: ImageDataset, template: str):
        super().__init__(source)
        self.template = template
        if any(brace in template.replace(CAPTION_PLACEHOLDER, "") for brace in "{}"):
            raise ValueError(
                f"caption_template={template}: unknown placeholder; only {CAPTION_PLACEHOLDER} is accepted"
            )

    def format_text(self, text: str) -> str:
        return self.template.replace(CAPTION_PLACEHOLDER, text)

    def captions(self) -> list[str]:
        return [self.format_text(text) for text in self.source.captions()]

    def all_captions(self) -> TextLists:
        return TextLists([self.format_text(text) for text in texts] for texts in self.source.all_captions())

    def prompts(self) -> list[str]:
        return list(dict.fromkeys(map(self.format_text, self.source.prompts())))

    def evaluation_spec(self) -> EvaluationSpec | None:
        """Score by the source's captions, if the template contains them."""
        spec = self.source.evaluation_spec() if CAPTION_PLACEHOLDER in self.template else None
        return spec and replace(
            spec, prompts=[self.format_text(text) for text in spec.prompts], scoring_prompts=spec.prompts
        )


def apply_caption_template(source: ImageDataset, template: str | None) -> ImageDataset:
    return CaptionTemplate(source, template) if template else source


class ImageSubset(DatasetWrapper):
    """The images at `indices`."""

    def __init__(self, source: ImageDataset, indices: Iterable[int]):
        super().__init__(source)
        self.indices = array("q", indices)

    def __len__(self):
        return len(self.indices)

    def image_names(self) -> list[str]:
        return self.select(self.source.image_names())

    def captions(self) -> list[str]:
        return self.select(self.source.captions())

    def all_captions(self) -> TextLists:
        captions = self.source.all_captions()
        return TextLists(captions[index] for index in self.indices)

    def sizes(self) -> list[tuple[int, int]]:
        return self.select(self.source.sizes())

    def select(self, items: list) -> list:
        return [items[index] for index in self.indices]

    def __getitem__(self, index: int) -> CaptionedImage:
        return self.source[self.indices[index]]

    def load_image(self, index: int, size: tuple[int, int]) -> CaptionedImage:
        return self.source.load_image(self.indices[index], size)

    def digest(self, index: int) -> str:
        return self.source.digest(self.indices[index])

    def check_content(self, index: int) -> None:
        self.source.check_content(self.indices[index])

    def file_records(self) -> RecordTable:
        records = self.source.file_records()
        return records.select(list(dict.fromkeys(self.indices))) if len(records) else records

    def describe(self) -> str:
        return f"{self.source.describe()}, subset of {len(self)}"


def split_validation(source: ImageDataset, validation_split: float) -> tuple[ImageDataset, ImageDataset | None]:
    """Return training images and held-out images: a number of these, or a fraction below 1. The split ignores the seed.

    Raises `ValueError` if no training image remains.
    """
    if validation_split < 0:
        raise ValueError(f"validation_split={validation_split}: choose a number of images, a fraction below 1, or 0")
    count = round(validation_split * len(source)) if validation_split < 1 else int(validation_split)
    if not count:
        return source, None
    if count >= len(source):
        raise ValueError(
            f"validation_split={validation_split:g}: leaves no training image of {len(source)}; choose fewer"
        )
    shuffled = draw_permutation(0, -1, len(source)).tolist()
    return ImageSubset(source, sorted(shuffled[count:])), ImageSubset(source, sorted(shuffled[:count]))
