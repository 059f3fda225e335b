"""A picture in another style: noised half-way, its edges held, and drawn again with the prompt and the adapter (SDEdit, 2022)."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from sdft.apps.stylize.controlnet import edges
from sdft.data.images import ENDINGS, as_image, decode, fit
from sdft.evaluation.plots.image_grid import font, wrap
from sdft.evaluation.variants import strength as at_strength
from sdft.models.cpu_threads import shared
from sdft.models.image_cache import slug
from sdft.models.sampling import asked, evaluating, together
from sdft.models.stable_diffusion import StableDiffusion
from sdft.runs.files import whole

LARGEST = 4.0  # times as long as high, or high as long


@dataclass
class Restyling:
    """`strength`: how much of the noise's way is gone back, from 0 to 1; `control`: of the edges; `scales`: of the adapter.

    `resolution`² is the area of a picture, whose shape is kept.
    """

    prompt: str
    resolution: int
    strength: float = 0.5
    guidance_scale: float = 7.5
    controlnet_scale: float = 0.5
    steps: int = 50
    adapter_scales: tuple[float, ...] = (1.0,)
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength={self.strength}: choose more than 0, up to 1")
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"steps={self.steps}: choose from 1 to 1000")
        if int(self.steps * self.strength) < 1:
            raise ValueError(f"steps={self.steps} strength={self.strength}: leaves no step to take; choose more")
        for key in ("guidance_scale", "controlnet_scale", "seed"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}={getattr(self, key)}: choose 0 or more")
        if not self.adapter_scales:
            raise ValueError("adapter_scales=[]: give at least one, such as [0.5,1]")

    def __call__(self, model: StableDiffusion, picture: Image.Image, controlnet=None) -> Image.Image:
        """RGB of the same size, whose sides are multiples of `model.unit`."""
        device = model.unet.device
        mixed = torch.autocast(device.type, model.compute, enabled=model.compute is not torch.float32)
        pipeline = self.pipeline(model, controlnet)
        pipeline.set_progress_bar_config(disable=True)
        held = (
            {"control_image": [edges(picture)], "controlnet_conditioning_scale": float(self.controlnet_scale)}
            if controlnet
            else {}
        )
        chance = torch.Generator().manual_seed(self.seed)
        shape = model.batch_shape(1, picture.size)
        with evaluating(model), together(model, device), torch.no_grad(), shared(model.unet, shape):
            mean, std = model.moments(fit(picture, picture.size)[None].to(device))
            with mixed:
                latents = pipeline(
                    **asked(model, [self.prompt], device),
                    **held,
                    image=model.latents(mean, std, torch.zeros_like(std)),
                    strength=self.strength,
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance_scale,
                    generator=[chance],
                    output_type="latent",
                ).images
            return pipeline.image_processor.postprocess(model.decode(latents))[0]

    def pipeline(self, model: StableDiffusion, controlnet):
        from diffusers import StableDiffusionControlNetImg2ImgPipeline, StableDiffusionImg2ImgPipeline

        if controlnet:
            return model.pipeline(StableDiffusionControlNetImg2ImgPipeline, controlnet=controlnet)
        return model.pipeline(StableDiffusionImg2ImgPipeline)


def photographs(images: str) -> list[Path]:
    """One picture, or those of a folder in the order of their names."""
    path = Path(images).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
        if not found:
            raise ValueError(f"images={images}: no pictures in it ({' '.join(ENDINGS)})")
        return found
    if not path.is_file():
        raise ValueError(f"images={images}: no such picture or folder")
    return [path]


def sized(file: Path, resolution: int, unit: int) -> Image.Image:
    """The picture with about `resolution`² pixels, in its own shape, with sides that are multiples of `unit`."""
    picture = decode(file)
    longer, shorter = max(picture.size), min(picture.size)
    if longer > LARGEST * shorter:
        raise ValueError(f"images={file}: {picture.width}x{picture.height} px; crop it to at most {LARGEST:g}:1")
    factor = resolution / math.sqrt(picture.width * picture.height)
    sides = tuple(max(unit, round(side * factor / unit) * unit) for side in picture.size)
    return as_image(fit(picture, sides))


def restyle(work: Restyling, model: StableDiffusion, files: list[Path], controlnet, folder: Path, about: dict) -> Path:
    """Each picture at every scale of the adapter, beside itself and without: single files, a sheet of strips, `settings.json`.

    Returns the sheet. A model without an adapter is drawn with once.
    """
    from rich.console import Console
    from rich.progress import track

    scales = sorted({0.0, *work.scales}) if has_adapter(model) else [1.0]
    console, rows, made = Console(), [], []
    for number, file in enumerate(
        track(files, "stylise", console=console, disable=not console.is_terminal, transient=True)
    ):
        picture = sized(file, work.resolution, model.unit)
        strip = {"before": picture} | ({"edges": edges(picture)} if controlnet else {})
        for scale in scales:
            with at_strength(model, scale):
                strip[title(scale, len(scales) > 1)] = work(model, picture, controlnet)
        stem = f"{number:03d}-{slug(file.stem)}".rstrip("-")
        for label, image in strip.items():
            save(image, folder / f"{stem}-{slug(label)}.png")
        rows.append(strip)
        made.append({"file": stem, "size": list(picture.size), "pictures": list(strip)})
    save(sheet(rows), folder / "strips.png")
    with whole(folder / "settings.json") as partial:
        text = json.dumps(about | asdict(work) | {"made": made}, indent=1, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")
    return folder / "strips.png"


def has_adapter(model: StableDiffusion) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def title(scale: float, several: bool) -> str:
    if not several:
        return "after"
    return "without LoRA" if scale == 0 else "after" if scale == 1 else f"LoRA at {scale:g}"


def save(image: Image.Image, file: Path) -> None:
    with whole(file) as partial:
        image.save(partial, format="PNG")


def sheet(rows: list[dict[str, Image.Image]], high: int = 256, gap: int = 4) -> Image.Image:
    """A strip a picture, all of one height, each tile below its label; small pictures are enlarged."""
    letters, strips = font(12), []
    for row in rows:
        wide = [max(1, round(high * image.width / image.height)) for image in row.values()]
        strip = Image.new("RGB", (sum(wide) + gap * (len(wide) + 1), high + 24), "white")
        draw, x = ImageDraw.Draw(strip), gap
        for (label, image), width in zip(row.items(), wide, strict=True):
            strip.paste(image.resize((width, high), Image.Resampling.LANCZOS), (x, 22))
            draw.text((x, 4), wrap(label, width, letters, 1)[0], "black", letters)
            x += width + gap
        strips.append(strip)
    page = Image.new("RGB", (max(s.width for s in strips), sum(s.height + gap for s in strips)), "white")
    y = 0
    for strip in strips:
        page.paste(strip, (0, y))
        y += strip.height + gap
    return page
