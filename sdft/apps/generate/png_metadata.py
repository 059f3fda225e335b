"""What a picture was made with, in its PNG: all of it as JSON under `sdft`, and the line that other tools read, `parameters`.

What is read back may be a stranger's: values are checked by type and limit, and names of files are only ever looked up.
"""

import hashlib
import json
import math
from pathlib import Path

from PIL import Image

from sdft.data.prompts import MAX_PROMPT_CHARS as LETTERS
from sdft.models.noise_schedulers import SCHEDULER_TITLES, check_scheduler_name, find_scheduler_name
from sdft.runs.files import atomic_write
from sdft.runs.hashing import hash_file

METADATA_KEY, SCHEMA_VERSION = "sdft", 1
TEXT_TYPE, NONE_TYPE = str, type(None)
# the type, and the least and most of a number or the most letters of a text
METADATA_FIELDS = {
    "prompt": ((TEXT_TYPE,), 0, LETTERS),
    "negative_prompt": ((TEXT_TYPE, NONE_TYPE), 0, LETTERS),
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
    "made": ((dict,), None, None),
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
MAX_ADAPTERS, MAX_METADATA_BATCH = 16, 256  # the most of them
PRECISIONS = ("float32", "bfloat16", "float16")


def save_png_with_metadata(picture: Image.Image, path: Path, image_metadata: dict) -> None:
    """The picture with what it was made with, whole or not at all."""
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("parameters", format_a1111_parameters(image_metadata))
    texts.add_text(
        METADATA_KEY, json.dumps({METADATA_KEY: SCHEMA_VERSION} | image_metadata, ensure_ascii=False, allow_nan=False)
    )
    with atomic_write(path) as file:
        picture.save(file, format="PNG", pnginfo=texts)


def format_a1111_parameters(image_metadata: dict) -> str:
    """The lines that AUTOMATIC1111's tool began and others read: prompt, what is not wanted, settings.

    Their seeds mean other noise.
    """
    adapters = [(get_adapter_name(Path(one["file"])), one) for one in image_metadata["adapters"]]
    sampler = image_metadata["scheduler"] or find_scheduler_name(image_metadata["sampler"])
    words = [
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
    if words:
        hashes = ", ".join(f"{name}: {one['tensors'][:12]}" for name, one in adapters)
        settings["Lora hashes"] = quote_parameter(hashes, always=True)
    settings["Version"] = METADATA_KEY
    lines = [" ".join([image_metadata["prompt"], *words])]
    lines += [f"Negative prompt: {image_metadata['negative_prompt']}"] if image_metadata["negative_prompt"] else []
    return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in settings.items())])


def quote_parameter(text: str, always: bool = False) -> str:
    """In marks where it would otherwise be read as several settings."""
    return json.dumps(text, ensure_ascii=False) if always or any(mark in text for mark in ',:\n"') else text


def read_png_metadata(path: Path, key: str = "reproduce") -> dict:
    """What `save` wrote, checked; `ValueError` in one line for everything else. `key` is what errors call the file."""
    image_metadata, where = read_raw_metadata(path, key), f"{key}={path}"
    check_metadata_fields(image_metadata, METADATA_FIELDS, where, "")
    check_metadata_fields(image_metadata["model"], MODEL_FIELDS, where, "model.")
    if len(image_metadata["adapters"]) > MAX_ADAPTERS:
        raise ValueError(f"{where}: tells of {len(image_metadata['adapters'])} adapters; {MAX_ADAPTERS} are the most")
    for number, one in enumerate(image_metadata["adapters"]):
        check_metadata_fields(one, ADAPTER_FIELDS, where, f"adapters[{number}].")
    if image_metadata["result"] is not None:
        check_metadata_fields(image_metadata["result"], RESULT_FIELDS, where, "result.")
    batch = image_metadata["batch"]
    plain = len(batch) == 2 and all(type(number) is int for number in batch)
    if not plain or not 0 <= batch[1] < batch[0] <= MAX_METADATA_BATCH:
        raise ValueError(
            f"{where}: its batch is {str(batch)[:40]}, which is no size up to {MAX_METADATA_BATCH} and a place in it"
        )
    if image_metadata["precision"] not in PRECISIONS:
        raise ValueError(f"{where}: its precision is none of {', '.join(PRECISIONS)}")
    check_scheduler_name(image_metadata["scheduler"], f"{where}: scheduler")
    return image_metadata


def read_raw_metadata(path: Path, key: str) -> dict:
    """The object of JSON in a PNG."""
    where = f"{key}={path}"
    if not path.is_file():
        raise ValueError(f"{where}: no such file; give a PNG that generate wrote")
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            text = picture.info.get(METADATA_KEY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: not a PNG that can be read ({str(error).splitlines()[0][:100]})") from None
    if not isinstance(text, str):
        raise ValueError(f"{where}: does not say what it was made with; only PNGs that generate wrote do")
    try:
        image_metadata = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: what it says of how it was made is not JSON") from None
    if not isinstance(image_metadata, dict) or image_metadata.pop(METADATA_KEY, None) != SCHEMA_VERSION:
        raise ValueError(
            f"{where}: was made by another version of generate; this one reads {METADATA_KEY}={SCHEMA_VERSION}"
        )
    return image_metadata


def check_metadata_fields(image_metadata: dict, fields: dict, where: str, prefix: str) -> None:
    """Every field, none beside them, each of its type and within its limits."""
    if not isinstance(image_metadata, dict) or set(image_metadata) != set(fields):
        odd = sorted(set(fields) ^ set(image_metadata)) if isinstance(image_metadata, dict) else ["a list"]
        raise ValueError(
            f"{where}: what it says of how it was made is not complete, or more ({prefix}{str(odd[0])[:40]})"
        )
    for name, (types, least, most) in fields.items():
        value = image_metadata[name]
        size = len(value) if isinstance(value, str) else value
        fits = type(value) in types and (not isinstance(value, float) or math.isfinite(value))
        if fits and least is not None and value is not None:
            fits = least <= size <= most
        if not fits:
            raise ValueError(f"{where}: its {prefix}{name} is {str(value)[:40]!r}, which cannot be")


def get_adapter_name(file: Path) -> str:
    """What a LoRA file is called: as its run's folder, where all files are called the same."""
    folder = file.parent.parent if file.parent.name == "adapter" else file.parent
    return folder.name if file.name == "pytorch_lora_weights.safetensors" and folder.name else file.stem


def shorten_path(path: Path | str) -> str:
    """A file's place without this machine's folders: from the current folder or the home, else its name alone."""
    path = Path(path)
    if not path.is_absolute():
        return path.as_posix()
    for home, sign in ((Path.cwd(), ""), (Path.home(), "~")):
        if path.is_relative_to(home):
            return (Path(sign) / path.relative_to(home)).as_posix()
    return path.name


def describe_adapter_file(file: Path) -> dict:
    """What is image_metadata of a LoRA file; `tensors` is the digest without the header, by which other tools look files up."""
    with file.open("rb") as opened:
        opened.seek(8 + int.from_bytes(opened.read(8), "little"))
        tensors = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"file": shorten_path(file), "digest": hash_file(file), "tensors": tensors}


def resolve_unchanged_file(image_metadata: dict, where: str, what: str, mend: str) -> Path:
    """The file that a picture was made with; `ValueError` when it is missing, or has changed since."""
    file, was = Path(image_metadata["file"]).expanduser(), image_metadata["digest"]
    if not file.is_file():
        raise ValueError(f"{where}: its {what} {image_metadata['file']} (SHA-256 {was[:12]}…) is not here; {mend}")
    if (now := hash_file(file)) != was:
        raise ValueError(
            f"{where}: its {what} {image_metadata['file']} has changed (SHA-256 {was[:12]}… then, {now[:12]}… now); {mend}"
        )
    return file
