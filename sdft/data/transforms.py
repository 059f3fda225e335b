"""A source seen through a template, or in part."""

from dataclasses import replace

from sdft.data.dataset import Picture, Questions, Source
from sdft.data.file_index import Fact
from sdft.rng import order

HOLE = "{caption}"


class View(Source):
    """`source` as it is."""

    def __init__(self, source: Source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def captions(self) -> list[str]:
        return self.source.captions()

    def __getitem__(self, index: int) -> Picture:
        return self.source[index]

    def variants(self) -> list[list[str]]:
        return self.source.variants()

    def picture(self, index: int, size: tuple[int, int]) -> Picture:
        return self.source.picture(index, size)

    def sizes(self) -> list[tuple[int, int]]:
        return self.source.sizes()

    def digest(self, index: int) -> str:
        return self.source.digest(index)

    def prompts(self) -> list[str]:
        return self.source.prompts()

    def questions(self) -> Questions | None:
        return self.source.questions()

    def verify(self) -> None:
        self.source.verify()

    def scanned(self) -> dict[str, Fact]:
        return self.source.scanned()

    def left_out(self) -> list[str]:
        return self.source.left_out()

    def describe(self) -> str:
        return self.source.describe()


class Worded(View):
    """Every caption and prompt put into `template`, where `{caption}` stands for it: "{caption} in oil", "a sks dog"."""

    def __init__(self, source: Source, template: str):
        super().__init__(source)
        self.template = template
        if any(mark in template.replace(HOLE, "") for mark in "{}"):
            raise ValueError(f"caption_template={template}: {HOLE} is all that can stand in braces")

    def word(self, text: str) -> str:
        return self.template.replace(HOLE, text)

    def captions(self) -> list[str]:
        return [self.word(text) for text in self.source.captions()]

    def variants(self) -> list[list[str]]:
        return [list(map(self.word, texts)) for texts in self.source.variants()]

    def prompts(self) -> list[str]:
        return list(dict.fromkeys(map(self.word, self.source.prompts())))

    def questions(self) -> Questions | None:
        """A judge is asked in the source's own words, if they are still in the prompt."""
        asked = self.source.questions() if HOLE in self.template else None
        return asked and replace(asked, prompts=[self.word(text) for text in asked.prompts], meant=asked.prompts)


def worded(source: Source, template: str | None) -> Source:
    return Worded(source, template) if template else source


class Part(View):
    """The pictures at `indices`."""

    def __init__(self, source: Source, indices: list[int]):
        super().__init__(source)
        self.indices = indices

    def __len__(self):
        return len(self.indices)

    def captions(self) -> list[str]:
        return self.of(self.source.captions())

    def variants(self) -> list[list[str]]:
        return self.of(self.source.variants())

    def sizes(self) -> list[tuple[int, int]]:
        return self.of(self.source.sizes())

    def of(self, all_of_them: list) -> list:
        return [all_of_them[index] for index in self.indices]

    def __getitem__(self, index: int) -> Picture:
        return self.source[self.indices[index]]

    def picture(self, index: int, size: tuple[int, int]) -> Picture:
        return self.source.picture(self.indices[index], size)

    def digest(self, index: int) -> str:
        return self.source.digest(self.indices[index])

    def scanned(self) -> dict[str, Fact]:
        facts = list(self.source.scanned().items())
        return dict(self.of(facts)) if facts else {}

    def describe(self) -> str:
        return f"{self.source.describe()}, {len(self)} of them"


def split(source: Source, validation_split: float) -> tuple[Source, Source | None]:
    """The pictures to learn from, and those held out: a number of them, or a share below 1. The same ones for every seed.

    `ValueError` when nothing would be left to learn from.
    """
    if validation_split < 0:
        raise ValueError(f"validation_split={validation_split}: choose a number of pictures, a share of them below 1, or 0")
    count = round(validation_split * len(source)) if validation_split < 1 else int(validation_split)
    if not count:
        return source, None
    if count >= len(source):
        raise ValueError(f"validation_split={validation_split:g}: leaves nothing to learn of {len(source)} pictures; choose fewer")
    shuffled = order(0, -1, len(source)).tolist()
    return Part(source, sorted(shuffled[count:])), Part(source, sorted(shuffled[:count]))
