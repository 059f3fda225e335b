"""Generation metadata in PNG text chunks: JSON under `sdft`, and `parameters`, the line that other tools read.

Metadata is untrusted when read: values are checked by type and range, and file names are only used for lookup.
"""

import hashlib
import json
import math
from pathlib import Path

from PIL import Image

from sdft.data.prompts import MAX_PROMPT_CHARS
from sdft.models.noise_schedulers import SCHEDULER_TITLES, check_scheduler_name, find_scheduler_name
from sdft.runs.files import atomic_write, find_home
from sdft.runs.hashing import hash_file

METADATA_KEY, SCHEMA_VERSION = "sdft", 2
TEXT_TYPE, NONE_TYPE = str, type(None)
# types, and the minimum and maximum of a number or of the length of a text
METADATA_FIELDS = {
    "prompt": ((TEXT_TYPE,), 0, MAX_PROMPT_CHARS),
    "negative_prompt": ((TEXT_TYPE, NONE_TYPE), 0, MAX_PROMPT_CHARS),
    "seed": ((int,), 0, 2**63 - 1),
    "steps": ((int,), 1, 1000),
    "guidance_scale": ((int, float), 0, 1000),
    "scheduler": ((TEXT_TYPE, NONE_TYPE), 0, 40),
    "width": ((int,), 8, 8192),
    "height": ((int,), 8, 8192),
    "precision": ((TEXT_TYPE,), 0, 20),
    "tf32": ((bool,), None, None),
    "strength": ((int, float), -1000, 1000),
    "run": ((TEXT_TYPE, NONE_TYPE), 0, 1000),
    "checkpoint": ((TEXT_TYPE, NONE_TYPE), 0, 20),
    "digest": ((TEXT_TYPE,), 0, 64),
    "model": ((dict,), None, None),
    "adapters": ((list,), None, None),
    "result": ((dict, NONE_TYPE), None, None),
    "sampler": ((dict,), None, None),
    "batch": ((list,), None, None),
    "created": ((dict,), None, None),
}
MODEL_FIELDS = {
    "name": ((TEXT_TYPE,), 1, 500),
    "architecture": ((TEXT_TYPE, NONE_TYPE), 0, 40),
    "weights": ((TEXT_TYPE,), 0, 20),
    "revision": ((TEXT_TYPE, NONE_TYPE), 0, 100),
    "variant": ((TEXT_TYPE, NONE_TYPE), 0, 40),
    "prediction_type": ((TEXT_TYPE, NONE_TYPE), 0, 40),
    "zero_terminal_snr": ((bool,), None, None),
    "prompt_chunks": ((int,), 1, 16),
}
ADAPTER_FIELDS = {
    "file": ((TEXT_TYPE,), 1, 1000),
    "digest": ((TEXT_TYPE,), 64, 64),
    "tensors": ((TEXT_TYPE,), 64, 64),
    "weight": ((int, float), -1000, 1000),
}
RESULT_FIELDS = {"file": ((TEXT_TYPE,), 1, 1000), "digest": ((TEXT_TYPE,), 64, 64)}
MAX_ADAPTERS, MAX_METADATA_BATCH = 16, 256
PRECISIONS = ("float32", "bfloat16", "float16")


def save_png_with_metadata(image: Image.Image, path: Path, image_metadata: dict) -> None:
    """Write the image with its metadata atomically."""
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("parameters", format_a1111_parameters(image_metadata))
    texts.add_text(
        METADATA_KEY, json.dumps({METADATA_KEY: SCHEMA_VERSION} | image_metadata, ensure_ascii=False, allow_nan=False)
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
    """Read and validate the metadata of a PNG; raises a one-line `ValueError` that calls the file `key`."""
    image_metadata, where = read_raw_metadata(path, key), f"{key}={path}"
    check_metadata_fields(image_metadata, METADATA_FIELDS, where, "")
    check_metadata_fields(image_metadata["model"], MODEL_FIELDS, where, "model.")
    if len(image_metadata["adapters"]) > MAX_ADAPTERS:
        raise ValueError(
            f"{where}: lists {len(image_metadata['adapters'])} adapters; at most {MAX_ADAPTERS} are supported"
        )
    for number, one in enumerate(image_metadata["adapters"]):
        check_metadata_fields(one, ADAPTER_FIELDS, where, f"adapters[{number}].")
    if image_metadata["result"] is not None:
        check_metadata_fields(image_metadata["result"], RESULT_FIELDS, where, "result.")
    batch = image_metadata["batch"]
    is_pair = len(batch) == 2 and all(type(number) is int for number in batch)
    if not is_pair or not 0 <= batch[1] < batch[0] <= MAX_METADATA_BATCH:
        raise ValueError(
            f"{where}: batch is {str(batch)[:40]}; expected a size up to {MAX_METADATA_BATCH} and an index below it"
        )
    if image_metadata["precision"] not in PRECISIONS:
        raise ValueError(f"{where}: precision is none of {', '.join(PRECISIONS)}")
    check_scheduler_name(image_metadata["scheduler"], f"{where}: scheduler")
    return image_metadata


def read_raw_metadata(path: Path, key: str) -> dict:
    """Load the JSON object in a PNG."""
    where = f"{key}={path}"
    if not path.is_file():
        raise ValueError(f"{where}: no such file; give a PNG that generate wrote")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            text = image.info.get(METADATA_KEY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: not a readable PNG ({str(error).splitlines()[0][:100]})") from None
    if not isinstance(text, str):
        raise ValueError(f"{where}: has no generation metadata; give a PNG that generate wrote")
    try:
        image_metadata = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: its generation metadata is not JSON") from None
    if not isinstance(image_metadata, dict) or image_metadata.pop(METADATA_KEY, None) != SCHEMA_VERSION:
        raise ValueError(
            f"{where}: its metadata has another schema version; supported: {METADATA_KEY}={SCHEMA_VERSION}"
        )
    return image_metadata


def check_metadata_fields(image_metadata: dict, fields: dict, where: str, prefix: str) -> None:
    """Require exactly these fields, each of its type and within its range."""
    if not isinstance(image_metadata, dict) or set(image_metadata) != set(fields):
        unmatched = sorted(set(fields) ^ set(image_metadata)) if isinstance(image_metadata, dict) else ["a list"]
        raise ValueError(f"{where}: its metadata has missing or unknown fields ({prefix}{str(unmatched[0])[:40]})")
    for name, (types, minimum, maximum) in fields.items():
        value = image_metadata[name]
        size = len(value) if isinstance(value, str) else value
        is_valid = type(value) in types and (not isinstance(value, float) or math.isfinite(value))
        if is_valid and minimum is not None and value is not None:
            is_valid = minimum <= size <= maximum
        if not is_valid:
            raise ValueError(f"{where}: {prefix}{name} has the invalid value {str(value)[:40]!r}")


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
