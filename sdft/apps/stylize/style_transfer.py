"""Style transfer with SDEdit (Meng et al., 2022): partially noise an image, then denoise it with prompt, adapter and edges."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from sdft.apps.stylize.controlnet import detect_edges
from sdft.data.image_formats import IMAGE_SUFFIXES
from sdft.data.images import decode_image, describe_notes, pixels_to_image, resize_and_crop
from sdft.evaluation.plots.image_grid import load_font, wrap_text
from sdft.lora.scaling import find_adapter_layers, scale_adapters
from sdft.models.cpu_threads import limit_threads
from sdft.models.diffusion_model import DiffusionModel
from sdft.models.image_cache import slugify
from sdft.models.sampling import eval_mode, move_to_device, to_pil_images
from sdft.runs.files import atomic_write
from sdft.runs.terminal import print_text

MAX_STYLIZE_ASPECT_RATIO = 4.0  # of the longer to the shorter side


@dataclass
class StyleTransfer:
    """`strength` is the fraction of the denoising steps that is run, 0..1; `controlnet_scale` weights the edges.

    `resolution`² is the image area; the aspect ratio is kept.
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
            raise ValueError(f"steps={self.steps} strength={self.strength}: no denoising step left; increase either")
        for key in ("guidance_scale", "controlnet_scale", "seed"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}={getattr(self, key)}: choose 0 or more")
        if not self.adapter_scales:
            raise ValueError("adapter_scales=[]: give at least one, such as [0.5,1]")

    def __call__(self, model: DiffusionModel, image: Image.Image, controlnet=None) -> Image.Image:
        """Return an RGB image of the same size, whose sides must be multiples of `model.size_multiple`."""
        device = model.unet.device
        tasks = {"controlnet": controlnet} if controlnet else {}
        pipeline = model.build_pipeline("controlnet" if controlnet else "image_to_image", **tasks)
        pipeline.set_progress_bar_config(disable=True)
        control = (
            {"control_image": [detect_edges(image)], "controlnet_conditioning_scale": float(self.controlnet_scale)}
            if controlnet
            else {}
        )
        generator = torch.Generator().manual_seed(self.seed)
        shape = model.batch_shape(1, image.size)
        with eval_mode(model), move_to_device(model, device), torch.no_grad(), limit_threads(model.unet, shape):
            mean, std = model.moments(resize_and_crop(image, image.size)[None].to(device))
            latents = pipeline(
                **model.build_prompt_arguments([self.prompt], [""]),
                **control,
                image=model.latents(mean, std, torch.zeros_like(std)),
                strength=self.strength,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance_scale,
                generator=[generator],
                output_type="latent",
            ).images
            return to_pil_images(model.decode(latents))[0]


def list_input_images(images: str) -> list[Path]:
    """The image file, or those of a folder sorted by name."""
    path = Path(images).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise ValueError(f"images={images}: no images in this folder ({' '.join(IMAGE_SUFFIXES)})")
        return files
    if not path.is_file():
        raise ValueError(f"images={images}: no such image file or folder")
    return [path]


def load_resized_image(file: Path, resolution: int, unit: int) -> Image.Image:
    """Load an image and resize it to about `resolution`² pixels, with sides that are multiples of `unit`."""
    image = decode_image(file)
    for note in describe_notes(image.info["notes"]):
        print_text(f"note       {file}: {note}", flush=True)
    longer, shorter = max(image.size), min(image.size)
    if longer > MAX_STYLIZE_ASPECT_RATIO * shorter:
        raise ValueError(
            f"images={file}: {image.width}x{image.height} px; crop it to at most {MAX_STYLIZE_ASPECT_RATIO:g}:1"
        )
    factor = resolution / math.sqrt(image.width * image.height)
    sides = tuple(max(unit, round(side * factor / unit) * unit) for side in image.size)
    return pixels_to_image(resize_and_crop(image, sides))


def stylize_images(
    transfer: StyleTransfer, model: DiffusionModel, files: list[Path], controlnet, folder: Path, metadata: dict
) -> Path:
    """Stylize each image without the adapter and at every adapter scale; write single files, a sheet of strips, `settings.json`.

    Returns the path of the sheet. Models without an adapter generate one image each.
    """
    from rich.console import Console
    from rich.progress import track

    scales = sorted({0.0, *transfer.adapter_scales}) if find_adapter_layers(model) else [1.0]
    console, rows, entries = Console(), [], []
    for number, file in enumerate(
        track(files, "stylize", console=console, disable=not console.is_terminal, transient=True)
    ):
        image = load_resized_image(file, transfer.resolution, model.size_multiple)
        strip = {"before": image} | ({"edges": detect_edges(image)} if controlnet else {})
        for scale in scales:
            with scale_adapters(model, scale):
                strip[format_strip_label(scale, len(scales) > 1)] = transfer(model, image, controlnet)
        stem = f"{number:03d}-{slugify(file.stem)}".rstrip("-")
        for label, tile in strip.items():
            save_strip_image(tile, folder / f"{stem}-{slugify(label)}.png")
        rows.append(strip)
        entries.append({"file": stem, "size": list(image.size), "images": list(strip)})
    save_strip_image(draw_strips(rows), folder / "strips.png")
    with atomic_write(folder / "settings.json") as partial:
        text = json.dumps(metadata | asdict(transfer) | {"results": entries}, indent=1, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")
    return folder / "strips.png"


def format_strip_label(scale: float, several: bool) -> str:
    if not several:
        return "after"
    return "without LoRA" if scale == 0 else "after" if scale == 1 else f"LoRA at {scale:g}"


def save_strip_image(image: Image.Image, file: Path) -> None:
    with atomic_write(file) as partial:
        image.save(partial, format="PNG")


def draw_strips(rows: list[dict[str, Image.Image]], height: int = 256, gap: int = 4) -> Image.Image:
    """One strip per image with a label over each tile; all tiles are scaled to `height`."""
    font, strips = load_font(12), []
    for row in rows:
        widths = [max(1, round(height * image.width / image.height)) for image in row.values()]
        strip = Image.new("RGB", (sum(widths) + gap * (len(widths) + 1), height + 24), "white")
        draw, x = ImageDraw.Draw(strip), gap
        for (label, image), width in zip(row.items(), widths, strict=True):
            strip.paste(image.resize((width, height), Image.Resampling.LANCZOS), (x, 22))
            draw.text((x, 4), wrap_text(label, width, font, 1)[0], "black", font)
            x += width + gap
        strips.append(strip)
    page = Image.new("RGB", (max(s.width for s in strips), sum(s.height + gap for s in strips)), "white")
    y = 0
    for strip in strips:
        page.paste(strip, (0, y))
        y += strip.height + gap
    return page
