"""Morph one image into another (DiffMorpher): sdft morph model=sd15 'images=[a.jpg,b.jpg]' 'prompts=[a cat,a dog]'"""

import sys
from pathlib import Path

from sdft.cli.entry_point import hydra_main
from sdft.runs.terminal import print_text

OPTION_TYPES = {
    "images": list[str],
    "frames": int,
    "fps": int,
    "compare": bool,
    "folder": str,
    "adapter_cache": str,
    "seed": int,
}
OPTION_TYPES |= {
    "ddim_steps": int,
    "inversion_iterations": int,
    "perceptual": str,
    "resolution": int,
    "adapters": list[str] | None,
}
OPTION_LIMITS = {"frames": (2, 1000), "fps": (1, 100)}


@hydra_main("morph")
def main(cfg):
    from hydra.utils import instantiate

    from sdft.config import check_config, check_option_types

    check_config(cfg)
    check_option_types(cfg, {option: hint for option, hint in OPTION_TYPES.items() if cfg[option] is not None})
    for option, (minimum, maximum) in OPTION_LIMITS.items():
        if not minimum <= cfg[option] <= maximum:
            raise ValueError(f"{option}={cfg[option]}: choose from {minimum} to {maximum}")
    from sdft.apps.morph.image_pair import read_image_pair, resize_to_common_size
    from sdft.apps.morph.perceptual_metric import build_perceptual_metric
    from sdft.apps.morph.results import write_results
    from sdft.apps.morph.video import PYAV_HINT, can_write_mp4
    from sdft.data.prompts import read_prompts

    settings = instantiate(cfg.settings)
    originals = read_image_pair(cfg.images, read_prompts(cfg.prompts))
    metric = build_perceptual_metric(cfg, settings)
    model = load_base_model(cfg)
    precision = instantiate(cfg.precision).resolve(model.unet.device)
    precision.configure_tf32()
    images, changes = resize_to_common_size(originals, model, cfg.resolution)
    lines = changes or [f"{image.name}: {image.caption}" for image in images]
    print_text(*[f"images     {line}" for line in lines], flush=True)
    morpher = build_diffmorpher(cfg, model, images, settings, precision)
    variants = settings.list_ablations() if cfg.compare else {"all parts": settings}
    sequences = generate_sequences(morpher, variants, cfg.frames, metric)
    write_results(morpher, sequences, Path(cfg.folder), cfg, metric)
    if not can_write_mp4():
        print_text(f"warning    {PYAV_HINT}", file=sys.stderr)


def load_base_model(cfg):
    """Load the base model in fp32, without the adapters of the two images."""
    from omegaconf import OmegaConf

    from sdft.apps.load_model import open_model

    request = OmegaConf.create(
        {option: value for option, value in cfg.items() if option not in ("adapters", "precision")}
    )
    return open_model(request).model


def build_diffmorpher(cfg, model, images, settings, precision):
    """Build the morpher, with one adapter per image unless `lora=none`."""
    from sdft.apps.morph.adapter_pair import build_adapter_interpolator
    from sdft.apps.morph.ddim_inversion import DDIM
    from sdft.apps.morph.diffmorpher import DiffMorpher

    ddim = DDIM.from_model(model, cfg.ddim_steps)
    interpolator = build_adapter_interpolator(cfg, model, images, settings.lora, precision)
    return DiffMorpher(model, ddim, images, interpolator, cfg.inversion_iterations)


def generate_sequences(morpher, variants, count: int, metric):
    """Generate one frame sequence per settings in `variants`, with a progress bar."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        total = sum(morpher.count_predictions(settings, count) for settings in variants.values())
        task = bar.add_task("frames", total=total)
        morpher.on_predictions = lambda predictions: bar.advance(task, predictions)
        compute_distances = metric and metric.compute_distances
        return {
            name: morpher.generate_sequence(settings, count, compute_distances) for name, settings in variants.items()
        }


if __name__ == "__main__":
    main()
