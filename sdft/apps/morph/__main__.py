"""From one picture to another: sdft morph model=sd15 'images=[a.jpg,b.jpg]' 'prompts=[a cat,a dog]'"""

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
    check_option_types(cfg, {word: hint for word, hint in OPTION_TYPES.items() if cfg[word] is not None})
    for word, (least, most) in OPTION_LIMITS.items():
        if not least <= cfg[word] <= most:
            raise ValueError(f"{word}={cfg[word]}: choose from {least} to {most}")
    from sdft.apps.morph.image_pair import read_image_pair, resize_to_common_size
    from sdft.apps.morph.video import PYAV_HINT, can_write_mp4
    from sdft.data.prompts import read_prompts

    recipe, precision = instantiate(cfg.recipe), instantiate(cfg.precision)
    given = read_image_pair(cfg.images, read_prompts(cfg.prompts))
    eye = build_perceptual_metric(cfg, recipe)
    model = load_base_model(cfg)
    pictures, lines = resize_to_common_size(given, model, cfg.resolution)
    print("\n".join(f"images   {line}" for line in lines or [f"{p.name}: {p.caption}" for p in pictures]), flush=True)
    morph = build_diffmorpher(cfg, model, pictures, recipe, precision)
    films = generate_sequences(morph, recipe.ablations() if cfg.compare else {"all parts": recipe}, cfg.frames, eye)
    write_results(morph, films, Path(cfg.folder), cfg, eye)
    if not can_write_mp4():
        print(f"warning  {PYAV_HINT}", file=sys.stderr)


def build_perceptual_metric(cfg, recipe):
    """The judge of distances, or None; refused before anything takes time."""
    from sdft.evaluation.metrics.lpips import Lpips, load_embedded_perceptual
    from sdft.training.strategy import select_device

    name = cfg.perceptual
    if name == "auto":
        name = "tiny-clip" if cfg.model.get("name") == "tiny-sd" else "alex"
    if name == "none":
        if recipe.frame_spacing == "even":
            raise ValueError(
                "perceptual=none frame_spacing=even: needs an eye; choose frame_spacing=uniform, or perceptual=alex"
            )
        return None
    device = select_device(cfg.accelerator)
    return load_embedded_perceptual(device) if name == "tiny-clip" else Lpips(name, device, option="perceptual")


def load_base_model(cfg):
    """The base, without the adapters of the two pictures."""
    from omegaconf import OmegaConf

    from sdft.apps.load_model import open_model

    asked = OmegaConf.create({word: value for word, value in cfg.items() if word != "adapters"})
    return open_model(asked).model


def build_diffmorpher(cfg, model, pictures, recipe, precision):
    """The model with an adapter of each picture: given, found, or learned now."""
    from hydra.utils import instantiate

    from sdft.apps.morph.ddim_inversion import DDIM
    from sdft.apps.morph.diffmorpher import DiffMorpher
    from sdft.lora.interpolation import AdapterInterpolator
    from sdft.lora.scaling import load_adapters

    ddim, device = DDIM.from_model(model, cfg.ddim_steps), model.unet.device
    if recipe.lora == "none":
        return DiffMorpher(model, ddim, pictures, None, cfg.inversion_iterations)
    if cfg.adapters is not None:
        files = [Path(file).expanduser() for file in cfg.adapters]
        if len(files) != 2:
            raise ValueError(f"adapters={list(cfg.adapters)}: {len(files)} given; give two, as [A,B]")
    else:
        portrait, place = instantiate(cfg.portrait), Path(cfg.adapter_cache)
        precision.check_accelerator("cpu" if device.type == "cpu" else "gpu")
        model.cpu()
        files = []
        for picture in pictures:
            kept = portrait.load_or_train(model, picture, precision, cfg.accelerator, place)
            how = f"learned in {kept.seconds:.0f} s" if kept.seconds else "learned before"
            print(f"adapter  {kept.folder} ({how})", flush=True)
            files.append(kept.folder)
        model.to(device)
    names = load_adapters(model, files)
    return DiffMorpher(model, ddim, pictures, AdapterInterpolator(model, names, recipe.lora), cfg.inversion_iterations)


def generate_sequences(morph, recipes, count: int, eye):
    """A film by each recipe, with a bar."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("frames", total=sum(morph.count_predictions(recipe, count) for recipe in recipes.values()))
        morph.on_predictions = lambda made: bar.advance(task, made)
        return {name: morph.film(recipe, count, eye and eye.distances) for name, recipe in recipes.items()}


def write_results(morph, films, folder: Path, cfg, eye) -> None:
    """Frames, films, strip and scores as files, and the scores in lines."""
    from sdft.apps.morph.video import can_write_mp4, draw_comparison_strip, write_frames, write_gif, write_mp4
    from sdft.runs.files import atomic_write

    first, scores = next(iter(films.values())), {name: film.compute_scores() for name, film in films.items()}
    limit = dict(zip(("PSNR first", "PSNR last"), morph.compute_autoencoder_psnr(), strict=True))
    write_frames(first.frames, folder / "frames")
    write_gif(first.frames, folder / "morph.gif", cfg.fps)
    if can_write_mp4():
        write_mp4(first.frames, folder / "morph.mp4", cfg.fps)
    with atomic_write(folder / "strip.png") as file:
        draw_comparison_strip(films).save(file, format="PNG")
    about = {"perceptual": eye and eye.name, "autoencoder": limit, "scores": scores, "alphas": first.alphas}
    about |= {
        "distances": first.distances,
        "endpoint_distances": first.endpoint_distances,
        "images": list(cfg.images),
        "prompts": [p.caption for p in morph.pictures],
    }
    with atomic_write(folder / "scores.json") as file:
        file.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if eye:
        print(f"distance {eye.name}: PPL is their sum from picture to picture, PDV their variance between frames")
    width = max(map(len, [*scores, "autoencoder"]))
    for name, row in {"autoencoder": limit, **scores}.items():
        print(f"scores   {name:<{width}}  " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    print(f"look     {folder}/morph.gif" + (f", {folder}/strip.png" if cfg.compare else ""))


if __name__ == "__main__":
    main()
