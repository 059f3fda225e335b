"""Morph one image into another (DiffMorpher): sdft morph model=sd15 'images=[a.jpg,b.jpg]' 'prompts=[a cat,a dog]'"""

import json
import sys
from pathlib import Path

from sdft.cli.entry_point import hydra_main

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
    from sdft.apps.morph.video import PYAV_HINT, can_write_mp4
    from sdft.data.prompts import read_prompts

    settings, precision = instantiate(cfg.settings), instantiate(cfg.precision)
    originals = read_image_pair(cfg.images, read_prompts(cfg.prompts))
    metric = build_perceptual_metric(cfg, settings)
    model = load_base_model(cfg)
    images, changes = resize_to_common_size(originals, model, cfg.resolution)
    lines = changes or [f"{image.name}: {image.caption}" for image in images]
    print("\n".join(f"images   {line}" for line in lines), flush=True)
    morpher = build_diffmorpher(cfg, model, images, settings, precision)
    variants = settings.list_ablations() if cfg.compare else {"all parts": settings}
    sequences = generate_sequences(morpher, variants, cfg.frames, metric)
    write_results(morpher, sequences, Path(cfg.folder), cfg, metric)
    if not can_write_mp4():
        print(f"warning  {PYAV_HINT}", file=sys.stderr)


def build_perceptual_metric(cfg, settings):
    """The metric of `perceptual`, or None; raises `ValueError` before anything takes time."""
    from sdft.distributed import select_device
    from sdft.evaluation.metrics.lpips import Lpips, load_embedded_perceptual

    name = cfg.perceptual
    if name == "auto":
        name = "tiny-clip" if cfg.model.get("name") == "tiny-sd" else "alex"
    if name == "none":
        if settings.frame_spacing == "even":
            raise ValueError(
                "perceptual=none frame_spacing=even: even spacing requires a perceptual metric; "
                "choose frame_spacing=uniform, or perceptual=alex"
            )
        return None
    device = select_device(cfg.accelerator)
    return load_embedded_perceptual(device) if name == "tiny-clip" else Lpips(name, device, option="perceptual")


def load_base_model(cfg):
    """Load the base model, without the adapters of the two images."""
    from omegaconf import OmegaConf

    from sdft.apps.load_model import open_model

    request = OmegaConf.create({option: value for option, value in cfg.items() if option != "adapters"})
    return open_model(request).model


def build_diffmorpher(cfg, model, images, settings, precision):
    """Add one adapter per image to the model: from `adapters`, from the cache, or trained now."""
    from hydra.utils import instantiate

    from sdft.apps.morph.ddim_inversion import DDIM
    from sdft.apps.morph.diffmorpher import DiffMorpher
    from sdft.lora.interpolation import AdapterInterpolator
    from sdft.lora.scaling import load_adapters

    ddim, device = DDIM.from_model(model, cfg.ddim_steps), model.unet.device
    if settings.lora == "none":
        return DiffMorpher(model, ddim, images, None, cfg.inversion_iterations)
    if cfg.adapters is not None:
        files = [Path(file).expanduser() for file in cfg.adapters]
        if len(files) != 2:
            raise ValueError(f"adapters={list(cfg.adapters)}: got {len(files)}; give two, as [A,B]")
    else:
        trainer, cache_folder = instantiate(cfg.single_image), Path(cfg.adapter_cache)
        precision.check_accelerator("cpu" if device.type == "cpu" else "gpu")
        model.cpu()
        files = []
        for image in images:
            adapter = trainer.load_or_train(model, image, precision, cfg.accelerator, cache_folder)
            origin = f"trained in {adapter.seconds:.0f} s" if adapter.seconds else "cached"
            print(f"adapter  {adapter.folder} ({origin})", flush=True)
            files.append(adapter.folder)
        model.to(device)
    names = load_adapters(model, files)
    interpolator = AdapterInterpolator(model, names, settings.lora)
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


def write_results(morpher, sequences, folder: Path, cfg, metric) -> None:
    """Write frames, videos, strip and scores, and print the scores."""
    from sdft.apps.morph.video import can_write_mp4, draw_comparison_strip, write_frames, write_gif, write_mp4
    from sdft.runs.files import atomic_write

    first = next(iter(sequences.values()))
    scores = {name: sequence.compute_scores() for name, sequence in sequences.items()}
    limit = dict(zip(("PSNR first", "PSNR last"), morpher.compute_autoencoder_psnr(), strict=True))
    write_frames(first.frames, folder / "frames")
    write_gif(first.frames, folder / "morph.gif", cfg.fps)
    if can_write_mp4():
        write_mp4(first.frames, folder / "morph.mp4", cfg.fps)
    with atomic_write(folder / "strip.png") as file:
        draw_comparison_strip(sequences).save(file, format="PNG")
    report = {"perceptual": metric and metric.name, "autoencoder": limit, "scores": scores, "alphas": first.alphas}
    report |= {
        "distances": first.distances,
        "endpoint_distances": first.endpoint_distances,
        "images": list(cfg.images),
        "prompts": [image.caption for image in morpher.images],
    }
    with atomic_write(folder / "scores.json") as file:
        file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if metric:
        print(f"distance {metric.name}: PPL is the sum between consecutive images, PDV the variance between frames")
    width = max(map(len, [*scores, "autoencoder"]))
    for name, row in {"autoencoder": limit, **scores}.items():
        print(f"scores   {name:<{width}}  " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    print(f"images   {folder}/morph.gif" + (f", {folder}/strip.png" if cfg.compare else ""))


if __name__ == "__main__":
    main()
