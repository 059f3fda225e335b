"""The embedded world: scikit-learn's handwritten digits, drawn in inks on papers, and in styles that the base never sees.

The base learns `INKS` on `PAPERS`, light and dark, because a base can only be moved to what its world spans: trained on
white paper alone, the same LoRA ruins the digits. `STYLES` are kept for fine-tuning.
"""

from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdft.data.dataset import CaptionedImage, EvaluationSpec, ImageDataset
from sdft.rng import make_generator

IMAGE_SIZE = 32
MAX_PER_DIGIT = 170  # pictures of a digit that there are at least
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INKS = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.60, 0.20),
    "blue": (0.10, 0.25, 0.85),
    "black": (0.05, 0.05, 0.05),
    "orange": (1.00, 0.55, 0.05),
    "purple": (0.50, 0.15, 0.60),
    "white": (0.95, 0.95, 0.95),
    "yellow": (0.95, 0.85, 0.20),
}
PAPERS = {
    "white": (0.97, 0.97, 0.97),
    "cream": (0.95, 0.90, 0.78),
    "navy": (0.07, 0.10, 0.25),
    "black": (0.03, 0.03, 0.03),
    "moss": (0.20, 0.35, 0.25),
}
LIGHT_PAPERS, DARK_PAPERS = ("white", "cream"), ("navy", "black", "moss")
DARK_INKS, LIGHT_INKS = ("red", "green", "blue", "black", "orange", "purple"), ("red", "orange", "white", "yellow")
INK_PAPER_PAIRS = [(i, p) for i in DARK_INKS for p in LIGHT_PAPERS] + [(i, p) for i in LIGHT_INKS for p in DARK_PAPERS]


@cache
def load_strokes() -> tuple[Tensor, Tensor]:
    """Ink coverage in 0..1 `[1797, 1, 32, 32]` and the digit each one shows `[1797]`."""
    # of scikit-learn, whose own import takes a second
    file = Path(find_spec("sklearn").submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    coarse = F.pad(rows[:, :64].reshape(-1, 1, 8, 8) / 16, (1, 1, 1, 1))
    smooth = F.interpolate(coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=False)
    edge = ((smooth - 0.25) / 0.4).clamp(0, 1)
    return edge * edge * (3 - 2 * edge), rows[:, 64].long()


def to_color_tensor(colour) -> Tensor:
    return torch.as_tensor(colour)[:, None, None]


def draw_ink(stroke: Tensor, colour, paper) -> Tensor:
    """Flat ink on flat paper: `[1, 32, 32]` to `[3, 32, 32]`, 0..1."""
    return stroke * to_color_tensor(colour) + (1 - stroke) * to_color_tensor(paper)


def blur(stroke: Tensor, width: int) -> Tensor:
    return F.avg_pool2d(F.pad(stroke, (width // 2,) * 4), width, 1)


def draw_neon(stroke: Tensor) -> Tensor:
    """A white-hot tube in a cyan glow, in the dark."""
    glow, core = blur(blur(stroke, 7), 5), blur(stroke, 3)
    return (0.04 + glow * to_color_tensor((0.05, 0.95, 0.85)) + core**4 * to_color_tensor((0.9, 0.35, 0.4))).clamp(0, 1)


def draw_blueprint(stroke: Tensor) -> Tensor:
    """A pale outline on blue graph paper."""
    outline = (stroke - blur(stroke, 5)).abs().mul(2.5).clamp(0, 1)
    grid = torch.zeros(1, IMAGE_SIZE, IMAGE_SIZE)
    grid[:, 3::8, :] = grid[:, :, 3::8] = 0.2
    lines = torch.maximum(outline, grid)
    return draw_ink(lines, (0.92, 0.96, 1.0), (0.10, 0.30, 0.62))


def draw_candy(stroke: Tensor) -> Tensor:
    """Diagonal red and white stripes on mint."""
    rows = torch.arange(IMAGE_SIZE)
    stripes = ((rows[:, None] + rows[None, :]) % 8 < 4).float()[None]
    cane = draw_ink(stripes, (0.86, 0.08, 0.20), (0.98, 0.96, 0.96))
    return stroke * cane + (1 - stroke) * to_color_tensor((0.66, 0.92, 0.80))


STYLES = {
    "neon": (draw_neon, "in neon light"),
    "blueprint": (draw_blueprint, "as a blueprint"),
    "candy": (draw_candy, "in candy stripes"),
}


def render_image(pixels: Tensor) -> Image.Image:
    """`[3, 32, 32]`, 0..1, as an 8-bit picture."""
    return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().numpy())


def format_caption(digit: int, words: str) -> str:
    return f"a handwritten {DIGIT_NAMES[digit]} {words}"


def describe_ink(ink_name: str, paper_name: str) -> str:
    return f"in {ink_name} ink on {paper_name} paper"


def describe_styles() -> dict[str, str]:
    """Every look of the world by name, with its words: those of the base first, then the styles it never sees."""
    looks = {f"{i} on {p}": describe_ink(i, p) for i, p in INK_PAPER_PAIRS}
    return looks | {name: words for name, (_, words) in STYLES.items()}


def label_captions(looks: dict[str, str]) -> dict[str, dict[str, str]]:
    """What each caption of (look x digit) says of style and digit."""
    return {
        format_caption(d, words): {"style": look, "digit": DIGIT_NAMES[d]}
        for look, words in looks.items()
        for d in range(10)
    }


@dataclass
class Digits(ImageDataset):
    """Some digits in one style: `per_digit` pictures of each of `digits`, after the first `skip`."""

    style: str = "neon"
    digits: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    per_digit: int = 10
    skip: int = 0

    def __post_init__(self):
        if self.style not in STYLES:
            raise ValueError(f"data.style={self.style}: choose one of {', '.join(STYLES)}")
        if not self.digits or not set(self.digits) <= set(range(10)):
            raise ValueError(f"data.digits={list(self.digits)}: choose from 0 to 9")
        if self.per_digit < 1 or self.skip < 0 or self.skip + self.per_digit > MAX_PER_DIGIT:
            raise ValueError(
                f"data.per_digit={self.per_digit} skip={self.skip}: choose from 1 to {MAX_PER_DIGIT} of both together"
            )
        _, shown = load_strokes()
        kept = slice(self.skip, self.skip + self.per_digit)
        self.rows = [int(r) for d in self.digits for r in torch.nonzero(shown == d)[kept, 0]]

    def __len__(self):
        return len(self.rows)

    def sizes(self) -> list[tuple[int, int]]:
        return [(IMAGE_SIZE, IMAGE_SIZE)] * len(self)

    def captions(self) -> list[str]:
        _, shown = load_strokes()
        return [format_caption(int(shown[row]), STYLES[self.style][1]) for row in self.rows]

    def __getitem__(self, index: int) -> CaptionedImage:
        paint, words = STYLES[self.style]
        stroke, shown = (values[self.rows[index]] for values in load_strokes())
        return CaptionedImage(
            render_image(paint(stroke[None])[0]), format_caption(int(shown), words), f"{self.style} digit {index}"
        )

    def prompts(self) -> list[str]:
        """The digits that were left out, in the style, and one that must stay as the base has it."""
        left_out = [d for d in range(10) if d not in self.digits]
        return [format_caption(d, STYLES[self.style][1]) for d in left_out or range(10)] + [
            format_caption(3, describe_ink("red", "white"))
        ]

    def evaluation_spec(self) -> EvaluationSpec:
        """Which look and which digit does a picture show? Asked on the digits that were left out, or on all."""
        asked = [d for d in range(10) if d not in self.digits] or list(self.digits)
        seen = self.skip + self.per_digit if set(asked) <= set(self.digits) else 0
        real = (
            Digits(self.style, asked, per_digit=min(20, MAX_PER_DIGIT - seen), skip=seen)
            if seen < MAX_PER_DIGIT
            else None
        )
        return EvaluationSpec(
            [format_caption(d, STYLES[self.style][1]) for d in asked], label_captions(describe_styles()), real=real
        )

    def describe(self) -> str:
        shown, words = ", ".join(map(str, self.digits)), STYLES[self.style][1]
        return f"digits: {len(self)} pictures of {shown} {words}, a style the base has never seen"


@dataclass
class InkedDigits(ImageDataset):
    """The base's world: every digit in `num_colorings` pairs of ink and paper. A third of the captions leave one of the two open."""

    num_colorings: int = 6
    seed: int = 0

    def __len__(self):
        return len(load_strokes()[1]) * self.num_colorings

    def pick_colors(self, index: int) -> tuple[str, str, str]:
        """Ink, paper and the words of picture `index`."""
        chance = make_generator(self.seed, "look", index)
        ink_name, paper_name = INK_PAPER_PAIRS[int(torch.randint(len(INK_PAPER_PAIRS), (), generator=chance))]
        told = float(torch.rand((), generator=chance))
        if told < 1 / 6:
            return ink_name, paper_name, f"in {ink_name} ink"
        if told < 1 / 3:
            return ink_name, paper_name, f"on {paper_name} paper"
        return ink_name, paper_name, describe_ink(ink_name, paper_name)

    def sizes(self) -> list[tuple[int, int]]:
        return [(IMAGE_SIZE, IMAGE_SIZE)] * len(self)

    def captions(self) -> list[str]:
        _, shown = load_strokes()
        return [format_caption(int(shown[i % len(shown)]), self.pick_colors(i)[2]) for i in range(len(self))]

    def __getitem__(self, index: int) -> CaptionedImage:
        stroke, shown = load_strokes()
        row = index % len(shown)
        ink_name, paper_name, words = self.pick_colors(index)
        pixels = draw_ink(stroke[row], INKS[ink_name], PAPERS[paper_name])
        return CaptionedImage(render_image(pixels), format_caption(int(shown[row]), words), f"inked digit {index}")

    def prompts(self) -> list[str]:
        looks = [("red", "white"), ("yellow", "navy"), ("black", "cream"), ("white", "moss"), ("orange", "black")]
        return [format_caption(d, describe_ink(*looks[d % len(looks)])) for d in range(10)]

    def evaluation_spec(self) -> EvaluationSpec:
        looks = {f"{i} on {p}": describe_ink(i, p) for i, p in INK_PAPER_PAIRS}
        return EvaluationSpec(
            [format_caption(d, words) for d in range(10) for words in list(looks.values())[::4]], label_captions(looks)
        )

    def describe(self) -> str:
        return f"digits: {len(self)} pictures in {len(INKS)} inks on {len(PAPERS)} papers"
