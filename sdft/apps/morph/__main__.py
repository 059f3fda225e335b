"""From one picture to another: sdft morph model=sd15 'images=[a.jpg,b.jpg]' 'prompts=[a cat,a dog]'"""

import json
import sys
from pathlib import Path

from sdft.cli.entry_point import command

WORDS = {"images": list[str], "frames": int, "fps": int, "compare": bool, "folder": str, "adapter_cache": str, "seed": int}
WORDS |= {"ddim_steps": int, "inversion_iterations": int, "perceptual": str, "resolution": int, "adapters": list[str] | None}
MOST = {"frames": (2, 1000), "fps": (1, 100)}


@command("morph")
def main(cfg):
    from hydra.utils import instantiate

    from sdft.config import check, typed

    check(cfg)
    typed(cfg, {word: hint for word, hint in WORDS.items() if cfg[word] is not None})
    for word, (least, most) in MOST.items():
        if not least <= cfg[word] <= most:
            raise ValueError(f"{word}={cfg[word]}: choose from {least} to {most}")
    from sdft.apps.morph.image_pair import read, together
    from sdft.apps.morph.video import HINT, can_write_mp4
    from sdft.data.prompts import read_prompts

    recipe, precision = instantiate(cfg.recipe), instantiate(cfg.precision)
    given = read(cfg.images, read_prompts(cfg.prompts))
    eye = seen_by(cfg, recipe)
    model = opened(cfg)
    pictures, lines = together(given, model, cfg.resolution)
    print("\n".join(f"images   {line}" for line in lines or [f"{p.name}: {p.caption}" for p in pictures]), flush=True)
    morph = ready(cfg, model, pictures, recipe, precision)
    films = shot(morph, recipe.without() if cfg.compare else {"all parts": recipe}, cfg.frames, eye)
    tell(morph, films, Path(cfg.folder), cfg, eye)
    if not can_write_mp4():
        print(f"warning  {HINT}", file=sys.stderr)


def seen_by(cfg, recipe):
    """The judge of distances, or None; refused before anything takes time."""
    from sdft.evaluation.metrics.lpips import Lpips, embedded
    from sdft.training.strategy import alone

    name = cfg.perceptual
    if name == "auto":
        name = "tiny-clip" if cfg.model.get("name") == "tiny-sd" else "alex"
    if name == "none":
        if recipe.frame_spacing == "even":
            raise ValueError("perceptual=none frame_spacing=even: needs an eye; choose frame_spacing=uniform, or perceptual=alex")
        return None
    device = alone(cfg.accelerator)
    return embedded(device) if name == "tiny-clip" else Lpips(name, device, word="perceptual")


def opened(cfg):
    """The base, without the adapters of the two pictures."""
    from omegaconf import OmegaConf

    from sdft.apps.load_model import open_model

    asked = OmegaConf.create({word: value for word, value in cfg.items() if word != "adapters"})
    return open_model(asked).model


def ready(cfg, model, pictures, recipe, precision):
    """The model with an adapter of each picture: given, found, or learned now."""
    from hydra.utils import instantiate

    from sdft.apps.morph.ddim_inversion import Ddim
    from sdft.apps.morph.diffmorpher import Morph
    from sdft.lora.interpolation import Blend
    from sdft.lora.scaling import wear

    ddim, device = Ddim.of(model, cfg.ddim_steps), model.unet.device
    if recipe.lora == "none":
        return Morph(model, ddim, pictures, None, cfg.inversion_iterations)
    if cfg.adapters is not None:
        files = [Path(file).expanduser() for file in cfg.adapters]
        if len(files) != 2:
            raise ValueError(f"adapters={list(cfg.adapters)}: {len(files)} given; give two, as [A,B]")
    else:
        portrait, place = instantiate(cfg.portrait), Path(cfg.adapter_cache)
        precision.check("cpu" if device.type == "cpu" else "gpu")
        model.cpu()
        files = []
        for picture in pictures:
            kept = portrait.learn(model, picture, precision, cfg.accelerator, place)
            how = f"learned in {kept.seconds:.0f} s" if kept.seconds else "learned before"
            print(f"adapter  {kept.folder} ({how})", flush=True)
            files.append(kept.folder)
        model.to(device)
    names = wear(model, files)
    return Morph(model, ddim, pictures, Blend(model, names, recipe.lora), cfg.inversion_iterations)


def shot(morph, recipes, count: int, eye):
    """A film by each recipe, with a bar."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("frames", total=sum(morph.calls(recipe, count) for recipe in recipes.values()))
        morph.tick = lambda made: bar.advance(task, made)
        return {name: morph.film(recipe, count, eye and eye.distances) for name, recipe in recipes.items()}


def tell(morph, films, folder: Path, cfg, eye) -> None:
    """Frames, films, strip and scores as files, and the scores in lines."""
    from sdft.apps.morph.video import can_write_mp4, strip, write_frames, write_gif, write_mp4
    from sdft.runs.files import whole

    first, scores = next(iter(films.values())), {name: film.scores() for name, film in films.items()}
    limit = dict(zip(("PSNR first", "PSNR last"), morph.round_trips(), strict=True))
    write_frames(first.frames, folder / "frames")
    write_gif(first.frames, folder / "morph.gif", cfg.fps)
    if can_write_mp4():
        write_mp4(first.frames, folder / "morph.mp4", cfg.fps)
    with whole(folder / "strip.png") as file:
        strip(films).save(file, format="PNG")
    about = {"perceptual": eye and eye.name, "autoencoder": limit, "scores": scores, "shares": first.shares}
    about |= {
        "distances": first.distances,
        "misses": first.misses,
        "images": list(cfg.images),
        "prompts": [p.caption for p in morph.pictures],
    }
    with whole(folder / "scores.json") as file:
        file.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if eye:
        print(f"distance {eye.name}: PPL is their sum from picture to picture, PDV their variance between frames")
    width = max(map(len, [*scores, "autoencoder"]))
    for name, row in {"autoencoder": limit, **scores}.items():
        print(f"scores   {name:<{width}}  " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    print(f"look     {folder}/morph.gif" + (f", {folder}/strip.png" if cfg.compare else ""))


if __name__ == "__main__":
    main()
