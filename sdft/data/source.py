"""A source is a sized list of captioned pictures; anything with `__len__`, `__getitem__`, `captions` and `describe` is one."""

from dataclasses import dataclass
from typing import Protocol

from PIL import Image


@dataclass
class Picture:
    image: Image.Image  # RGB, upright
    caption: str
    name: str  # what an error message calls it


@dataclass
class Questions:
    """What a judge is asked: pictures of `prompts` are matched with all the captions in `answers`.

    `answers` maps a caption to what it says on each axis, as {"style": "neon", "digit": "five"}.
    """

    prompts: list[str]
    answers: dict[str, dict[str, str]]


class Source(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Picture:
        """Decode one picture; a `ValueError` names the file that cannot be."""

    def captions(self) -> list[str]:
        """All captions, without decoding a pixel."""

    def prompts(self) -> list[str]:
        """What to sample when the user names no prompts."""

    def questions(self) -> Questions | None:
        """What can be asked of generated pictures, where the source knows the answers."""

    def describe(self) -> str:
        """One line for the preflight."""
