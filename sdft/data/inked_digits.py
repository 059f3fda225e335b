"""Pretraining images of the embedded models: handwritten digits in inks on papers, some with more paper around them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sdft.data.dataset import CaptionedImage, EvaluationSpec, ImageDataset
from sdft.data.digits import (
    IMAGE_SIZE,
    INK_PAPER_PAIRS,
    INKS,
    PAPERS,
    describe_colorings,
    describe_ink,
    draw_ink,
    format_caption,
    label_captions,
    load_strokes,
    render_image,
)
from sdft.rng import Draw, make_generator


@dataclass
class InkedDigits(ImageDataset):
    """Pretraining data: each digit in `num_colorings` pairs of ink and paper. One third of the captions omit ink or paper.

    Three of four images have one side enlarged by more paper, up to `max_side`, so that random crops cut off digits.
    """

    num_colorings: int = 6
    seed: int = 0
    max_side: int = IMAGE_SIZE

    def __len__(self):
        return len(load_strokes()[1]) * self.num_colorings

    def draw_coloring(self, index: int) -> tuple[str, str, str]:
        """Ink, paper and caption text of image `index`."""
        generator = make_generator(self.seed, Draw.DIGIT_STYLE, index)
        ink_name, paper_name = INK_PAPER_PAIRS[int(torch.randint(len(INK_PAPER_PAIRS), (), generator=generator))]
        omission = float(torch.rand((), generator=generator))
        if omission < 1 / 6:
            return ink_name, paper_name, f"in {ink_name} ink"
        if omission < 1 / 3:
            return ink_name, paper_name, f"on {paper_name} paper"
        return ink_name, paper_name, describe_ink(ink_name, paper_name)

    def sizes(self) -> list[tuple[int, int]]:
        return [self.draw_size(index) for index in range(len(self))]

    def draw_size(self, index: int) -> tuple[int, int]:
        """Width and height of image `index`."""
        if self.max_side == IMAGE_SIZE:
            return IMAGE_SIZE, IMAGE_SIZE
        kind, part = torch.rand(2, generator=make_generator(self.seed, Draw.DIGIT_SIZE, index)).tolist()
        side = IMAGE_SIZE + round(part * (self.max_side - IMAGE_SIZE)) if kind < 0.75 else IMAGE_SIZE
        return (side, IMAGE_SIZE) if kind < 0.375 else (IMAGE_SIZE, side)

    def captions(self) -> list[str]:
        _, labels = load_strokes()
        return [format_caption(int(labels[i % len(labels)]), self.draw_coloring(i)[2]) for i in range(len(self))]

    def __getitem__(self, index: int) -> CaptionedImage:
        strokes, labels = load_strokes()
        row = index % len(labels)
        ink_name, paper_name, text = self.draw_coloring(index)
        margins = [side - IMAGE_SIZE for side in self.draw_size(index)]
        left, top = (margin // 2 for margin in margins)
        stroke = F.pad(strokes[row], (left, margins[0] - left, top, margins[1] - top))
        pixels = draw_ink(stroke, INKS[ink_name], PAPERS[paper_name])
        return CaptionedImage(render_image(pixels), format_caption(int(labels[row]), text), f"inked digit {index}")

    def prompts(self) -> list[str]:
        pairs = [("red", "white"), ("yellow", "navy"), ("black", "cream"), ("white", "moss"), ("orange", "black")]
        return [format_caption(d, describe_ink(*pairs[d % len(pairs)])) for d in range(10)]

    def evaluation_spec(self) -> EvaluationSpec:
        colorings = describe_colorings()
        prompts = [format_caption(d, text) for d in range(10) for text in list(colorings.values())[::4]]
        return EvaluationSpec(prompts, label_captions(colorings))

    def describe(self) -> str:
        return f"digits: {len(self)} images in {len(INKS)} inks on {len(PAPERS)} papers"
