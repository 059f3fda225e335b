"""Pictures on disk, made once: what a manifest vouches for, with the settings it was made with, is not made again."""

import hashlib
import json
import re
from pathlib import Path

import sdft.distributed as processes
from sdft.models.sampling import ImageSize, Sampling
from sdft.models.stable_diffusion import StableDiffusion
from sdft.runs.files import atomic_write, read_json
from sdft.runs.hashing import hash_file, hash_weights

MANIFEST_FILE = "manifest.json"


def collect_image_settings(model: StableDiffusion, sampling: Sampling, resolution: ImageSize) -> dict:
    """All but prompt and seed that a picture depends on; of adapters also their strength, which is no weight."""
    from peft.tuners.lora import LoraLayer

    adapted = {name: dict(module.scaling) for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return {
        **({"adapter": hashlib.sha256(json.dumps(adapted).encode()).hexdigest()[:16]} if adapted else {}),
        "model": hash_weights(model),
        "sampler": json.loads(sampling.create_scheduler(model).to_json_string()),
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        **({"negative_prompt": sampling.negative_prompt} if sampling.negative_prompt else {}),
        "resolution": list(resolution) if isinstance(resolution, tuple) else resolution,
        "prompt_chunks": model.prompt_chunks,
        "precision": str(model.compute_dtype).removeprefix("torch."),
    }


def slugify(text: str) -> str:
    """Words as a file's name may hold them."""
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:40]


def format_image_name(prompt: str, seed: int) -> str:
    """The file of one picture in a folder of its settings."""
    return f"{slugify(prompt)}-{hashlib.sha256(prompt.encode()).hexdigest()[:6]}-{seed}.png"


def format_folder_name(words: str, settings: dict) -> str:
    """A name that differs wherever the pictures would."""
    return f"{slugify(words)}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"


def read_manifest(folder: Path, settings: dict, key: str = "folder") -> dict[str, str]:
    """The digest of each picture that was made in `folder`; `ValueError` when it was made otherwise than `settings` say."""
    if not (made := read_json(folder / MANIFEST_FILE)):
        return {}
    for name, value in settings.items():
        if made.get(name) != value:
            raise ValueError(
                f"{key}={folder}: made with {name}={made.get(name)}, and this run wants {name}={value}; "
                "give another folder, or none"
            )
    return made["files"]


def generate_missing_images(
    wanted: dict[str, tuple[str, int]],
    sampling: Sampling,
    model: StableDiffusion,
    resolution: ImageSize,
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
    made = read_manifest(folder, settings, key) if first else {}
    missing = processes.broadcast(
        [n for n in wanted if n not in made or made[n] != hash_file(folder / n)] if first else None
    )
    if missing and first:
        there = f" ({len(wanted) - len(missing)} are there)" if len(missing) < len(wanted) else ""
        print(f"{title}: {len(missing)} pictures to be made in {folder}/{there}", flush=True)
    console, rounds = Console(), -(-len(missing) // (sampling.batch_size * processes.world_size()))
    drawn = sampling.sample_batches(model, [wanted[name] for name in missing], resolution)
    left = iter(missing)
    for pictures in track(drawn, title, total=rounds, console=console, disable=not (first and console.is_terminal)):
        for picture, name in zip(pictures, left, strict=False):
            with atomic_write(folder / name) as file:
                picture.save(file, format="PNG")
            made[name] = hash_file(folder / name)
        if first:
            with atomic_write(folder / MANIFEST_FILE) as file:
                text = json.dumps({**settings, "files": made}, indent=1, ensure_ascii=False)
                file.write_text(text + "\n", encoding="utf-8")
    processes.barrier()  # nobody reads before everything is written
    return [folder / name for name in wanted]
