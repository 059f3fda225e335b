"""Pictures from a model: one seed an image, so that a picture depends on neither batch size nor order."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image

import sdft.processes as processes
from sdft.model import StableDiffusion

TIMESTEPS = 1000  # of Stable Diffusion's noise


@dataclass
class Sampling:
    """`seed` + i starts the noise of the i-th image of every prompt, as `torch.Generator().manual_seed` does."""

    steps: int = 30
    guidance_scale: float = 7.5
    images: int = 1
    seed: int = 0
    batch_size: int = 4

    def __post_init__(self):
        for key in ("steps", "images", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"sampling.{key}={getattr(self, key)}: choose 1 or more")
        if self.steps > TIMESTEPS:
            raise ValueError(
                f"sampling.steps={self.steps}: choose {TIMESTEPS} or less, for there are no more timesteps"
            )
        for key in ("guidance_scale", "seed"):
            if getattr(self, key) < 0:
                raise ValueError(f"sampling.{key}={getattr(self, key)}: choose 0 or more")

    def requests(self, prompts: list[str]) -> list[tuple[str, int]]:
        """(prompt, seed) of every image, prompt by prompt."""
        return [(prompt, self.seed + i) for prompt in prompts for i in range(self.images)]

    def __call__(self, model: StableDiffusion, prompts: list[str], resolution: int) -> list[Image.Image]:
        """One RGB picture per request, in order: all of them in the first process, none in others, which share the work."""
        return [p for made in self.rounds(model, self.requests(prompts), resolution) for p in made]

    def rounds(self, model: StableDiffusion, requests: list[tuple[str, int]], resolution: int):
        """The same in rounds of a batch for every process: the first one's pictures of each round are complete and in order.

        Each takes part in every round, with one request again where there are too few: sharded weights need all of them.
        """
        first, count = processes.rank(), processes.world()
        for start in range(0, len(requests), self.batch_size * count):
            these = requests[start : start + self.batch_size * count]
            mine = these[first::count]
            shares = processes.gathered(list(self.pictures(model, mine or these[:1], resolution)))
            yield [shares[i % count][i // count] for i in range(len(these))] if shares else []

    def pictures(
        self, model: StableDiffusion, requests: list[tuple[str, int]], resolution: int
    ) -> Iterator[Image.Image]:
        """One RGB picture of each (prompt, seed)."""
        pipeline, device = model.pipeline(), model.unet.device
        pipeline.set_progress_bar_config(disable=True)
        for start in range(0, len(requests), self.batch_size):
            batch = requests[start : start + self.batch_size]
            mixed = torch.autocast(device.type, model.compute, enabled=model.compute is not torch.float32)
            with evaluating(model), together(model, device), torch.no_grad(), mixed:
                latents = pipeline(
                    **asked(model, [prompt for prompt, _ in batch], device),
                    generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
                    height=resolution,
                    width=resolution,
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance_scale,
                    output_type="latent",
                ).images
                pictures = pipeline.image_processor.postprocess(model.decode(latents))
            yield from pictures


def asked(model: StableDiffusion, prompts: list[str], device: torch.device) -> dict:
    """What a pipeline takes: prompts, or of a model with several windows what it makes of them and of none."""
    if model.windows == 1:
        return {"prompt": prompts}
    context, none = (model.condition(model.tokenize(texts).to(device)) for texts in (prompts, [""] * len(prompts)))
    return {"prompt_embeds": context, "negative_prompt_embeds": none}


@contextmanager
def together(model: StableDiffusion, device: torch.device):
    """All parts on `device`, and afterwards each where it was."""
    places = {part: part.device for part in (model.vae, model.text_encoder)}
    for part in places:
        part.to(device)
    try:
        yield
    finally:
        for part, place in places.items():
            part.to(place)


@contextmanager
def evaluating(model: torch.nn.Module):
    """Evaluation mode, and afterwards each module's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def grid(rows: list[list[Image.Image]], gap: int = 2) -> Image.Image:
    """Rows of equal pictures on white."""
    width, height = rows[0][0].size
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (columns * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (width + gap), y * (height + gap)))
    return sheet


def labelled(rows: list[tuple[str, list[Image.Image]]], columns: list[str], tile: int = 128) -> Image.Image:
    """A grid with a caption over each column and a label before each row; small pictures are enlarged to `tile` pixels."""
    from PIL import ImageDraw, ImageFont

    size = rows[0][1][0].width
    factor = max(1, tile // size)
    tiles = [
        [p.resize((p.width * factor, p.height * factor), Image.Resampling.LANCZOS) for p in row] for _, row in rows
    ]
    sheet, font = grid(tiles, gap=4), ImageFont.load_default(13)
    edge = size * factor
    left = 12 + max(int(font.getlength(label)) for label, _ in rows)
    heads = [wrap(text, edge, font) for text in columns]
    top = 10 + 16 * max((len(lines) for lines in heads), default=0)
    page = Image.new("RGB", (left + sheet.width + 4, top + sheet.height + 4), "white")
    page.paste(sheet, (left, top))
    draw = ImageDraw.Draw(page)
    for x, lines in enumerate(heads):
        draw.text((left + x * (edge + 4), 4), "\n".join(lines), "black", font)
    for y, (label, _) in enumerate(rows):
        draw.text((6, top + y * (edge + 4) + edge // 2 - 8), label, "black", font)
    return page


def wrap(text: str, width: int, font, most: int = 4) -> list[str]:
    """Lines of at most `width` pixels, and at most `most` of them."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines[:most] if len(lines) <= most else [*lines[: most - 1], lines[most - 1] + " …"]
