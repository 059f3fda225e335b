"""Pictures on disk, made once: what a manifest vouches for, with the settings it was made with, is not made again."""

import hashlib
import json
import re
from pathlib import Path

import sdft.distributed as processes
from sdft.models.sampling import Sampling, Size
from sdft.models.stable_diffusion import StableDiffusion
from sdft.runs.files import read_json, whole
from sdft.runs.hashing import of_file, of_weights

MANIFEST = "manifest.json"


def settings_of(model: StableDiffusion, sampling: Sampling, resolution: Size) -> dict:
    """All but prompt and seed that a picture depends on; of adapters also their strength, which is no weight."""
    from peft.tuners.lora import LoraLayer

    adapted = {name: dict(module.scaling) for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return {
        **({"adapter": hashlib.sha256(json.dumps(adapted).encode()).hexdigest()[:16]} if adapted else {}),
        "model": of_weights(model),
        "sampler": json.loads(sampling.scheduler_of(model).to_json_string()),
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        **({"negative_prompt": sampling.negative_prompt} if sampling.negative_prompt else {}),
        "resolution": list(resolution) if isinstance(resolution, tuple) else resolution,
        "prompt_chunks": model.prompt_chunks,
        "precision": str(model.compute).removeprefix("torch."),
    }


def slug(text: str) -> str:
    """Words as a file's name may hold them."""
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:40]


def name_of(prompt: str, seed: int) -> str:
    """The file of one picture in a folder of its settings."""
    return f"{slug(prompt)}-{hashlib.sha256(prompt.encode()).hexdigest()[:6]}-{seed}.png"


def place(words: str, settings: dict) -> str:
    """A name that differs wherever the pictures would."""
    return f"{slug(words)}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"


def manifest(folder: Path, settings: dict, key: str = "folder") -> dict[str, str]:
    """The digest of each picture that was made in `folder`; `ValueError` when it was made otherwise than `settings` say."""
    if not (made := read_json(folder / MANIFEST)):
        return {}
    for name, value in settings.items():
        if made.get(name) != value:
            raise ValueError(
                f"{key}={folder}: made with {name}={made.get(name)}, and this run wants {name}={value}; "
                "give another folder, or none"
            )
    return made["files"]


def make(
    wanted: dict[str, tuple[str, int]],
    sampling: Sampling,
    model: StableDiffusion,
    resolution: Size,
    folder: Path,
    settings: dict,
    title: str,
    key: str = "folder",
) -> list[Path]:
    """The files of `wanted`, a (prompt, seed) by name; those that are missing or changed are made now.

    Each batch is on disk before the next begins, so that what was interrupted goes on where it was. Processes share the work.
    """
    from rich.console import Console
    from rich.progress import track

    first = processes.rank() == 0
    made = manifest(folder, settings, key) if first else {}
    missing = processes.told([n for n in wanted if n not in made or made[n] != of_file(folder / n)] if first else None)
    if missing and first:
        there = f" ({len(wanted) - len(missing)} are there)" if len(missing) < len(wanted) else ""
        print(f"{title}: {len(missing)} pictures to be made in {folder}/{there}", flush=True)
    console, rounds = Console(), -(-len(missing) // (sampling.batch_size * processes.world()))
    drawn = sampling.rounds(model, [wanted[name] for name in missing], resolution)
    left = iter(missing)
    for pictures in track(drawn, title, total=rounds, console=console, disable=not (first and console.is_terminal)):
        for picture, name in zip(pictures, left, strict=False):
            with whole(folder / name) as file:
                picture.save(file, format="PNG")
            made[name] = of_file(folder / name)
        if first:
            with whole(folder / MANIFEST) as file:
                text = json.dumps({**settings, "files": made}, indent=1, ensure_ascii=False)
                file.write_text(text + "\n", encoding="utf-8")
    processes.wait()  # nobody reads before everything is written
    return [folder / name for name in wanted]
