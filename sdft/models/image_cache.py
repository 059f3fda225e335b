"""Cache of generated images: a manifest records their settings and hashes, so that only missing images are generated."""

import hashlib
import json
import re
from pathlib import Path

import sdft.distributed as processes
from sdft.models.diffusion_model import DiffusionModel
from sdft.models.sampling import ImageSize, Sampling
from sdft.runs.files import atomic_write, read_json
from sdft.runs.hashing import hash_file, hash_weights_on_rank_0
from sdft.runs.lock import wait_for_lock
from sdft.runs.terminal import escape_unprintable, print_text

MANIFEST_FILE = "manifest.json"


def collect_image_settings(model: DiffusionModel, sampling: Sampling, resolution: ImageSize) -> dict:
    """All settings besides prompt and seed that an image depends on; adapter scales are not part of the weights. Collective."""
    from peft.tuners.lora import LoraLayer

    scales = {name: dict(module.scaling) for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return {
        **({"adapter": hashlib.sha256(json.dumps(scales).encode()).hexdigest()[:16]} if scales else {}),
        "model": hash_weights_on_rank_0(model),
        "sampler": json.loads(sampling.create_scheduler(model).to_json_string()),
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        **({"negative_prompt": sampling.negative_prompt} if sampling.negative_prompt else {}),
        "resolution": list(resolution) if isinstance(resolution, tuple) else resolution,
        "prompt_chunks": model.prompt_chunks,
        **model.text_options,
        **{key: list(value) for key, value in sampling.geometry_options.items()},
        "precision": str(model.compute_dtype).removeprefix("torch."),
    }


def slugify(text: str) -> str:
    """Text as part of a file name, at most 40 characters."""
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:40]


def format_image_name(prompt: str, seed: int) -> str:
    """File name of an image in the folder of its settings."""
    return f"{slugify(prompt)}-{hashlib.sha256(prompt.encode()).hexdigest()[:6]}-{seed}.png"


def format_folder_name(title: str, settings: dict) -> str:
    """Folder name with a hash of the settings."""
    return f"{slugify(title)}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"


def read_manifest(folder: Path, settings: dict, key: str = "folder") -> dict[str, str]:
    """Hash of each image in `folder` by file name; `ValueError` when its settings differ from `settings`."""
    if not (manifest := read_json(folder / MANIFEST_FILE)):
        return {}
    for name, value in settings.items():
        if manifest.get(name) != value:
            raise ValueError(
                f"{key}={folder}: generated with {name}={manifest.get(name)}, but this run uses {name}={value}; "
                "choose another folder, or null"
            )
    return manifest["files"]


def add_to_manifest(folder: Path, settings: dict, hashes: dict[str, str], key: str) -> dict[str, str]:
    """Add images to the manifest, beside those that other processes have added meanwhile; returns all."""
    with wait_for_lock(folder / f".{MANIFEST_FILE}.lock"):
        hashes = read_manifest(folder, settings, key) | hashes
        with atomic_write(folder / MANIFEST_FILE) as file:
            text = json.dumps({**settings, "files": hashes}, indent=1, ensure_ascii=False)
            file.write_text(text + "\n", encoding="utf-8")
    return hashes


def generate_missing_images(
    requests: dict[str, tuple[str, int]],
    sampling: Sampling,
    model: DiffusionModel,
    resolution: ImageSize,
    folder: Path,
    settings: dict,
    title: str,
    key: str = "folder",
) -> list[Path]:
    """Generate the missing or changed files of `requests`, (prompt, seed) by file name; return the paths of all.

    Each batch is written before the next starts, so that an interrupted call can continue. All ranks sample.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    is_main = processes.rank() == 0
    hashes = read_manifest(folder, settings, key) if is_main else {}
    missing = processes.broadcast(
        [n for n in requests if n not in hashes or hashes[n] != hash_file(folder / n)] if is_main else None
    )
    if missing and is_main:
        cached = f" ({len(requests) - len(missing)} cached)" if len(missing) < len(requests) else ""
        print_text(f"{title}: generating {len(missing)} images in {folder}/{cached}", flush=True)
    console, rounds = Console(), -(-len(missing) // (sampling.batch_size * processes.world_size()))
    batches = sampling.sample_batches(model, [requests[name] for name in missing], resolution)
    names = iter(missing)
    label = escape(escape_unprintable(title))
    for images in track(batches, label, total=rounds, console=console, disable=not (is_main and console.is_terminal)):
        for image, name in zip(images, names, strict=False):
            with atomic_write(folder / name) as file:
                image.save(file, format="PNG")
            hashes[name] = hash_file(folder / name)
        if is_main:
            hashes = add_to_manifest(folder, settings, hashes, key)
    processes.barrier()  # all files are written before any rank reads them
    return [folder / name for name in requests]
