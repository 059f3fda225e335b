"""Generation metadata in PNG text chunks: JSON under `sdft`, and `parameters`, the line that other tools read.

Metadata is untrusted when read: it gives plain values of known options, and file names are only used for lookup.
"""

import hashlib
import json
from pathlib import Path

from PIL import Image

from sdft.models.noise_schedulers import SCHEDULER_TITLES, find_scheduler_name
from sdft.models.sampling import GEOMETRY_OPTIONS
from sdft.runs.files import atomic_write, check_format_version, check_structure, find_home
from sdft.runs.hashing import hash_file
from sdft.runs.stored_options import check_plain_value

METADATA_KEY, METADATA_FORMAT = "sdft", 2
NUMBER, TEXT_OR_NULL = (int, float), (str, type(None))
METADATA_STRUCTURE = {
    **dict.fromkeys(("prompt", "precision", "digest"), str),
    **dict.fromkeys(("seed", "steps", "width", "height"), int),
    **dict.fromkeys(("guidance_scale", "strength"), NUMBER),
    **dict.fromkeys(("negative_prompt", "scheduler", "run", "checkpoint"), TEXT_OR_NULL),
    "tf32": bool,
    "model": {
        **dict.fromkeys(("name", "weights"), str),
        **dict.fromkeys(("architecture", "revision", "variant", "prediction_type"), TEXT_OR_NULL),
        "zero_terminal_snr": bool,
        "prompt_chunks": int,
        "vae?": TEXT_OR_NULL,
        "empty_caption?": TEXT_OR_NULL,
        "clip_skip?": (int, type(None)),
    },
    "adapters": [{"file": str, "digest": str, "weight": NUMBER}],
    "result": (dict, type(None)),
    "batch": [int],
    **{f"{option}?": [int] for option in GEOMETRY_OPTIONS},
}
MAX_METADATA_BATCH, MAX_PROMPT_CHUNKS = 256, 16


def save_png_with_metadata(image: Image.Image, path: Path, image_metadata: dict) -> None:
    """Write the image with its metadata atomically."""
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("parameters", format_a1111_parameters(image_metadata))
    texts.add_text(
        METADATA_KEY, json.dumps({METADATA_KEY: METADATA_FORMAT} | image_metadata, ensure_ascii=False, allow_nan=False)
    )
    with atomic_write(path) as file:
        image.save(file, format="PNG", pnginfo=texts)


def format_a1111_parameters(image_metadata: dict) -> str:
    """Format prompt, negative prompt and settings as the AUTOMATIC1111 web UI does; its seeds give different noise."""
    adapters = [(get_adapter_name(Path(one["file"])), one) for one in image_metadata["adapters"]]
    sampler = image_metadata["scheduler"] or find_scheduler_name(image_metadata["sampler"])
    lora_tags = [
        f"<lora:{name}:{one['weight'] * image_metadata['strength']:g}>"
        for name, one in adapters
        if image_metadata["strength"]
    ]
    settings = {
        "Steps": image_metadata["steps"],
        "Sampler": SCHEDULER_TITLES.get(sampler, sampler),
        "CFG scale": f"{image_metadata['guidance_scale']:g}",
        "Seed": image_metadata["seed"],
        "Size": f"{image_metadata['width']}x{image_metadata['height']}",
        "Model hash": image_metadata["digest"][:10],
        "Model": quote_parameter(Path(image_metadata["model"]["name"]).name),
    }
    if clip_skip := image_metadata["model"].get("clip_skip"):
        settings["Clip skip"] = clip_skip
    if lora_tags:
        hashes = ", ".join(f"{name}: {one['tensors'][:12]}" for name, one in adapters)
        settings["Lora hashes"] = quote_parameter(hashes, always=True)
    settings["Version"] = METADATA_KEY
    lines = [" ".join([image_metadata["prompt"], *lora_tags])]
    lines += [f"Negative prompt: {image_metadata['negative_prompt']}"] if image_metadata["negative_prompt"] else []
    return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in settings.items())])


def quote_parameter(text: str, always: bool = False) -> str:
    """Quote text that would otherwise be split into several settings."""
    return json.dumps(text, ensure_ascii=False) if always or any(mark in text for mark in ',:\n"') else text


def read_png_metadata(path: Path, key: str = "reproduce") -> dict:
    """Read the metadata of a PNG; raises a one-line `ValueError` that calls the file `key`."""
    where = f"{key}={path}"
    if not path.is_file():
        raise ValueError(f"{where}: no such file; give a PNG that generate wrote")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image_metadata = json.loads(image.info.get(METADATA_KEY, ""))
    except (OSError, ValueError, TypeError, SyntaxError, RecursionError, Image.DecompressionBombError):
        raise ValueError(f"{where}: has no generation metadata; give a PNG that generate wrote") from None
    check_structure(image_metadata, dict, where)
    check_format_version(image_metadata.pop(METADATA_KEY, None), METADATA_FORMAT, where)
    check_structure(image_metadata, METADATA_STRUCTURE, where)
    if image_metadata["result"] is not None:
        check_structure(image_metadata["result"], {"file": str, "digest": str}, where)
    for name in image_metadata.keys() & {key.rstrip("?") for key in METADATA_STRUCTURE}:
        check_plain_value(image_metadata[name], f"{where}: {name}")
    batch, chunks = image_metadata["batch"], image_metadata["model"]["prompt_chunks"]
    if len(batch) != 2 or not 0 <= batch[1] < batch[0] <= MAX_METADATA_BATCH or chunks > MAX_PROMPT_CHUNKS:
        raise ValueError(f"{where}: its batch {str(batch)[:40]} or prompt_chunks {str(chunks)[:40]} is out of range")
    return image_metadata


def get_adapter_name(file: Path) -> str:
    """Name of a LoRA file: its stem, or the run's folder for the standard file name."""
    folder = file.parent.parent if file.parent.name == "adapter" else file.parent
    return folder.name if file.name == "pytorch_lora_weights.safetensors" and folder.name else file.stem


def shorten_path(path: Path | str) -> str:
    """Make a path relative to the current or home folder, else reduce it to its name, to reveal no folders of this machine."""
    path = Path(path)
    if not path.is_absolute():
        return path.as_posix()
    for root, prefix in ((Path.cwd(), ""), (find_home(), "~")):
        if root and path.is_relative_to(root):
            return (Path(prefix) / path.relative_to(root)).as_posix()
    return path.name


def describe_adapter_file(file: Path) -> dict:
    """Metadata of a LoRA file; `tensors` is the digest without the header, by which other tools find files."""
    with file.open("rb") as stream:
        stream.seek(8 + int.from_bytes(stream.read(8), "little"))
        tensors = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"file": shorten_path(file), "digest": hash_file(file), "tensors": tensors}


def resolve_unchanged_file(file_metadata: dict, where: str, kind: str, hint: str) -> Path:
    """Find a file that an image was generated with; `ValueError` if it is missing or has changed."""
    name, digest = file_metadata["file"], file_metadata["digest"]
    file = Path(name).expanduser()
    if not file.is_file():
        raise ValueError(f"{where}: {kind} {name} (SHA-256 {digest[:12]}…) not found; {hint}")
    if (current := hash_file(file)) != digest:
        raise ValueError(
            f"{where}: {kind} {name} has changed (SHA-256 {digest[:12]}… then, {current[:12]}… now); {hint}"
        )
    return file
