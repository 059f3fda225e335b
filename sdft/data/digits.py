"""Embedded digits dataset: scikit-learn's handwritten digits in inks on papers, and in styles reserved for fine-tuning.

The base model is trained on `INKS` on light and dark `PAPERS`, because fine-tuning only reaches what the pretraining data
span: after pretraining on white paper only, the same LoRA ruins the digits. `STYLES` never occur in pretraining.
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

IMAGE_SIZE = 32
MAX_PER_DIGIT = 170  # every digit has at least this many images
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
    """Return ink coverage `[1797, 1, 32, 32]`, 0..1, and digit labels `[1797]`."""
    # reads the file, because importing scikit-learn takes a second
    file = Path(find_spec("sklearn").submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    coarse = F.pad(rows[:, :64].reshape(-1, 1, 8, 8) / 16, (1, 1, 1, 1))
    smooth = F.interpolate(coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=False)
    edge = ((smooth - 0.25) / 0.4).clamp(0, 1)
    return edge * edge * (3 - 2 * edge), rows[:, 64].long()


def to_color_tensor(colour) -> Tensor:
    return torch.as_tensor(colour)[:, None, None]


def draw_ink(stroke: Tensor, colour, paper) -> Tensor:
    """Draw a stroke `[1, 32, 32]` in flat ink on flat paper `[3, 32, 32]`, 0..1."""
    return stroke * to_color_tensor(colour) + (1 - stroke) * to_color_tensor(paper)


def blur(stroke: Tensor, width: int) -> Tensor:
    return F.avg_pool2d(F.pad(stroke, (width // 2,) * 4), width, 1)


def draw_neon(stroke: Tensor) -> Tensor:
    """Draw a white tube with a cyan glow on a dark background."""
    glow, core = blur(blur(stroke, 7), 5), blur(stroke, 3)
    return (0.04 + glow * to_color_tensor((0.05, 0.95, 0.85)) + core**4 * to_color_tensor((0.9, 0.35, 0.4))).clamp(0, 1)


def draw_blueprint(stroke: Tensor) -> Tensor:
    """Draw a pale outline on blue graph paper."""
    outline = (stroke - blur(stroke, 5)).abs().mul(2.5).clamp(0, 1)
    grid = torch.zeros(1, IMAGE_SIZE, IMAGE_SIZE)
    grid[:, 3::8, :] = grid[:, :, 3::8] = 0.2
    lines = torch.maximum(outline, grid)
    return draw_ink(lines, (0.92, 0.96, 1.0), (0.10, 0.30, 0.62))


def draw_candy(stroke: Tensor) -> Tensor:
    """Draw diagonal red and white stripes on mint."""
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
    """Convert `[3, 32, 32]`, 0..1, to an 8-bit image."""
    return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().numpy())


def format_caption(digit: int, style_text: str) -> str:
    return f"a handwritten {DIGIT_NAMES[digit]} {style_text}"


def describe_ink(ink_name: str, paper_name: str) -> str:
    return f"in {ink_name} ink on {paper_name} paper"


def describe_colorings() -> dict[str, str]:
    """Return the caption text of each pair of ink and paper, by style name."""
    return {f"{i} on {p}": describe_ink(i, p) for i, p in INK_PAPER_PAIRS}


def describe_styles() -> dict[str, str]:
    """Return the caption text of each style by name: first the colorings of pretraining, then `STYLES`."""
    return describe_colorings() | {name: text for name, (_, text) in STYLES.items()}


def label_captions(styles: dict[str, str]) -> dict[str, dict[str, str]]:
    """Return the style and digit label of the caption of each (style, digit)."""
    return {
        format_caption(d, text): {"style": style, "digit": DIGIT_NAMES[d]}
        for style, text in styles.items()
        for d in range(10)
    }


@dataclass
class Digits(ImageDataset):
    """Digits in one style: `per_digit` images of each of `digits`, after the first `skip`."""

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
                f"data.per_digit={self.per_digit} skip={self.skip}: choose 1 to {MAX_PER_DIGIT} as the sum of both"
            )
        _, labels = load_strokes()
        selection = slice(self.skip, self.skip + self.per_digit)
        self.rows = [int(row) for d in self.digits for row in torch.nonzero(labels == d)[selection, 0]]

    def __len__(self):
        return len(self.rows)

    def sizes(self) -> list[tuple[int, int]]:
        return [(IMAGE_SIZE, IMAGE_SIZE)] * len(self)

    def captions(self) -> list[str]:
        _, labels = load_strokes()
        return [format_caption(int(labels[row]), STYLES[self.style][1]) for row in self.rows]

    def __getitem__(self, index: int) -> CaptionedImage:
        draw, style_text = STYLES[self.style]
        stroke, label = (values[self.rows[index]] for values in load_strokes())
        return CaptionedImage(
            render_image(draw(stroke[None])[0]), format_caption(int(label), style_text), f"{self.style} digit {index}"
        )

    def list_held_out_digits(self) -> list[int]:
        return [d for d in range(10) if d not in self.digits]

    def prompts(self) -> list[str]:
        """Held-out digits in the style, and one control prompt from pretraining."""
        return [format_caption(d, STYLES[self.style][1]) for d in self.list_held_out_digits() or range(10)] + [
            format_caption(3, describe_ink("red", "white"))
        ]

    def evaluation_spec(self) -> EvaluationSpec:
        """Labels of style and digit, for the held-out digits, or for all if none is held out."""
        digits = self.list_held_out_digits() or list(self.digits)
        skip = self.skip + self.per_digit if set(digits) <= set(self.digits) else 0
        real = (
            Digits(self.style, digits, per_digit=min(20, MAX_PER_DIGIT - skip), skip=skip)
            if skip < MAX_PER_DIGIT
            else None
        )
        prompts = [format_caption(d, STYLES[self.style][1]) for d in digits]
        return EvaluationSpec(prompts, label_captions(describe_styles()), real=real)

    def describe(self) -> str:
        digits, style_text = ", ".join(map(str, self.digits)), STYLES[self.style][1]
        return f"digits: {len(self)} images of {digits} {style_text}, a style not seen in pretraining"
