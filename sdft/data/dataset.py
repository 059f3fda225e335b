"""A source is a sized list of captioned pictures, and what it knows about them."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from sdft.data.file_index import FileRecord, map_in_threads


@dataclass
class CaptionedImage:
    image: Image.Image  # RGB, upright
    caption: str
    name: str  # what an error message calls it
    mask: Image.Image | None = None  # of the same size; white is what is learned, None is all of it


@dataclass
class EvaluationSpec:
    """What a judge is asked: pictures of `prompts` are matched with all the captions in `answers`.

    `answers` maps a caption to what it says on each axis, as {"style": "neon", "digit": "five"}; `scoring_prompts` are the captions
    that the prompts stand for, where a template words them differently; `real` are real pictures of what is asked.
    """

    prompts: list[str]
    caption_labels: dict[str, dict[str, str]]
    scoring_prompts: list[str] | None = None
    real: "ImageDataset | None" = None


class ImageDataset:
    """Subclasses hold pictures; what they know beyond that is theirs to say."""

    @cached_property
    def content_cache(self) -> dict:
        """What took a decoding to find out."""
        return {}

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> CaptionedImage:
        """Decode one picture; a `ValueError` names the file that cannot be."""
        raise NotImplementedError

    def load_image(self, index: int, size: tuple[int, int]) -> CaptionedImage:
        """As `[index]`, perhaps decoded more coarsely, but no smaller than will cover `size`."""
        return self[index]

    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of every picture, upright; found once."""
        if "sizes" not in self.content_cache:
            self.content_cache["sizes"] = map_in_threads(lambda index: self[index].image.size, range(len(self)))
        return self.content_cache["sizes"]

    def digest(self, index: int) -> str:
        """What picture and mask are, by content; found once."""
        if index not in self.content_cache:
            picture = self[index]
            parts = [picture.image, *([picture.mask] if picture.mask else [])]
            whole = b"".join(repr(part.size).encode() + part.tobytes() for part in parts)
            self.content_cache[index] = hashlib.sha256(whole).hexdigest()
        return self.content_cache[index]

    def captions(self) -> list[str]:
        """The caption of every picture, without decoding a pixel; of those with several, the first."""
        raise NotImplementedError

    def all_captions(self) -> list[list[str]]:
        """All captions of every picture; training draws one."""
        return [[caption] for caption in self.captions()]

    def prompts(self) -> list[str]:
        """What to sample when the user names no prompts."""
        return list(dict.fromkeys(self.captions()))[:4]

    def evaluation_spec(self) -> EvaluationSpec | None:
        """What can be asked of generated pictures, where the source knows the answers."""
        return None

    def verify(self) -> None:
        """Raise one `ValueError` that names every picture that cannot be read."""

    def file_records(self) -> dict[str, FileRecord]:
        """What is known of the files, by name, where there are files."""
        return {}

    def skipped_files(self) -> list[str]:
        """What could not be used, and why."""
        return []

    def describe(self) -> str:
        """One line for the preflight."""
        raise NotImplementedError
