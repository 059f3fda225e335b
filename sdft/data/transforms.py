"""A source seen through a template, or in part."""

from dataclasses import replace

from sdft.data.dataset import CaptionedImage, EvaluationSpec, ImageDataset
from sdft.data.file_index import FileRecord
from sdft.rng import draw_permutation

CAPTION_PLACEHOLDER = "{caption}"


class DatasetWrapper(ImageDataset):
    """`source` as it is."""

    def __init__(self, source: ImageDataset):
        self.source = source

    def __len__(self):
        return len(self.source)

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

    def verify(self) -> None:
        self.source.verify()

    def file_records(self) -> dict[str, FileRecord]:
        return self.source.file_records()

    def skipped_files(self) -> list[str]:
        return self.source.skipped_files()

    def describe(self) -> str:
        return self.source.describe()


class CaptionTemplate(DatasetWrapper):
    """Every caption and prompt put into `template`, where `{caption}` stands for it: "{caption} in oil", "a sks dog"."""

    def __init__(self, source: ImageDataset, template: str):
        super().__init__(source)
        self.template = template
        if any(mark in template.replace(CAPTION_PLACEHOLDER, "") for mark in "{}"):
            raise ValueError(f"caption_template={template}: {CAPTION_PLACEHOLDER} is all that can stand in braces")

    def apply(self, text: str) -> str:
        return self.template.replace(CAPTION_PLACEHOLDER, text)

    def captions(self) -> list[str]:
        return [self.apply(text) for text in self.source.captions()]

    def all_captions(self) -> list[list[str]]:
        return [list(map(self.apply, texts)) for texts in self.source.all_captions()]

    def prompts(self) -> list[str]:
        return list(dict.fromkeys(map(self.apply, self.source.prompts())))

    def evaluation_spec(self) -> EvaluationSpec | None:
        """A judge is asked in the source's own words, if they are still in the prompt."""
        asked = self.source.evaluation_spec() if CAPTION_PLACEHOLDER in self.template else None
        return asked and replace(
            asked, prompts=[self.apply(text) for text in asked.prompts], scoring_prompts=asked.prompts
        )


def apply_caption_template(source: ImageDataset, template: str | None) -> ImageDataset:
    return CaptionTemplate(source, template) if template else source


class ImageSubset(DatasetWrapper):
    """The pictures at `indices`."""

    def __init__(self, source: ImageDataset, indices: list[int]):
        super().__init__(source)
        self.indices = indices

    def __len__(self):
        return len(self.indices)

    def captions(self) -> list[str]:
        return self.of(self.source.captions())

    def all_captions(self) -> list[list[str]]:
        return self.of(self.source.all_captions())

    def sizes(self) -> list[tuple[int, int]]:
        return self.of(self.source.sizes())

    def of(self, all_of_them: list) -> list:
        return [all_of_them[index] for index in self.indices]

    def __getitem__(self, index: int) -> CaptionedImage:
        return self.source[self.indices[index]]

    def load_image(self, index: int, size: tuple[int, int]) -> CaptionedImage:
        return self.source.load_image(self.indices[index], size)

    def digest(self, index: int) -> str:
        return self.source.digest(self.indices[index])

    def file_records(self) -> dict[str, FileRecord]:
        facts = list(self.source.file_records().items())
        return dict(self.of(facts)) if facts else {}

    def describe(self) -> str:
        return f"{self.source.describe()}, {len(self)} of them"


def split_validation(source: ImageDataset, validation_split: float) -> tuple[ImageDataset, ImageDataset | None]:
    """The pictures to learn from, and those held out: a number of them, or a share below 1. The same ones for every seed.

    `ValueError` when nothing would be left to learn from.
    """
    if validation_split < 0:
        raise ValueError(
            f"validation_split={validation_split}: choose a number of pictures, a share of them below 1, or 0"
        )
    count = round(validation_split * len(source)) if validation_split < 1 else int(validation_split)
    if not count:
        return source, None
    if count >= len(source):
        raise ValueError(
            f"validation_split={validation_split:g}: leaves nothing to learn of {len(source)} pictures; choose fewer"
        )
    shuffled = draw_permutation(0, -1, len(source)).tolist()
    return ImageSubset(source, sorted(shuffled[count:])), ImageSubset(source, sorted(shuffled[:count]))
