"""What a picture was made with, in its PNG: all of it as JSON under `sdft`, and the line that other tools read, `parameters`.

What is read back may be a stranger's: values are checked by type and limit, and names of files are only ever looked up.
"""

import hashlib
import json
import math
from pathlib import Path

from PIL import Image

from sdft.data.prompts import MOST as LETTERS
from sdft.models.noise_schedulers import TITLES, known, name_of
from sdft.runs.files import whole
from sdft.runs.hashing import of_file

KEY, SCHEMA = "sdft", 1
TEXT, NONE = str, type(None)
# the type, and the least and most of a number or the most letters of a text
FIELDS = {
    "prompt": ((TEXT,), 0, LETTERS),
    "negative_prompt": ((TEXT, NONE), 0, LETTERS),
    "seed": ((int,), 0, 2**63 - 1),
    "steps": ((int,), 1, 1000),
    "guidance_scale": ((int, float), 0, 1000),
    "scheduler": ((TEXT, NONE), 0, 40),
    "width": ((int,), 8, 8192),
    "height": ((int,), 8, 8192),
    "precision": ((TEXT,), 0, 20),
    "tf32": ((bool,), None, None),
    "strength": ((int, float), -1000, 1000),
    "run": ((TEXT, NONE), 0, 1000),
    "checkpoint": ((TEXT, NONE), 0, 20),
    "digest": ((TEXT,), 0, 64),
    "model": ((dict,), None, None),
    "adapters": ((list,), None, None),
    "result": ((dict, NONE), None, None),
    "sampler": ((dict,), None, None),
    "batch": ((list,), None, None),
    "made": ((dict,), None, None),
}
MODEL = {
    "name": ((TEXT,), 1, 500),
    "architecture": ((TEXT, NONE), 0, 40),
    "weights": ((TEXT,), 0, 20),
    "revision": ((TEXT, NONE), 0, 100),
    "variant": ((TEXT, NONE), 0, 40),
    "prediction_type": ((TEXT, NONE), 0, 40),
    "zero_terminal_snr": ((bool,), None, None),
    "prompt_chunks": ((int,), 1, 16),
}
ADAPTER = {
    "file": ((TEXT,), 1, 1000),
    "digest": ((TEXT,), 64, 64),
    "tensors": ((TEXT,), 64, 64),
    "weight": ((int, float), -1000, 1000),
}
RESULT = {"file": ((TEXT,), 1, 1000), "digest": ((TEXT,), 64, 64)}
ADAPTERS, BATCH = 16, 256  # the most of them
PRECISIONS = ("float32", "bfloat16", "float16")


def save(picture: Image.Image, path: Path, told: dict) -> None:
    """The picture with what it was made with, whole or not at all."""
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("parameters", parameters(told))
    texts.add_text(KEY, json.dumps({KEY: SCHEMA} | told, ensure_ascii=False, allow_nan=False))
    with whole(path) as file:
        picture.save(file, format="PNG", pnginfo=texts)


def parameters(told: dict) -> str:
    """The lines that AUTOMATIC1111's tool began and others read: prompt, what is not wanted, settings.

    Their seeds mean other noise.
    """
    adapters = [(named(Path(one["file"])), one) for one in told["adapters"]]
    sampler = told["scheduler"] or name_of(told["sampler"])
    words = [f"<lora:{name}:{one['weight'] * told['strength']:g}>" for name, one in adapters if told["strength"]]
    settings = {
        "Steps": told["steps"],
        "Sampler": TITLES.get(sampler, sampler),
        "CFG scale": f"{told['guidance_scale']:g}",
        "Seed": told["seed"],
        "Size": f"{told['width']}x{told['height']}",
        "Model hash": told["digest"][:10],
        "Model": quoted(Path(told["model"]["name"]).name),
    }
    if words:
        hashes = ", ".join(f"{name}: {one['tensors'][:12]}" for name, one in adapters)
        settings["Lora hashes"] = quoted(hashes, always=True)
    settings["Version"] = KEY
    lines = [" ".join([told["prompt"], *words])]
    lines += [f"Negative prompt: {told['negative_prompt']}"] if told["negative_prompt"] else []
    return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in settings.items())])


def quoted(text: str, always: bool = False) -> str:
    """In marks where it would otherwise be read as several settings."""
    return json.dumps(text, ensure_ascii=False) if always or any(mark in text for mark in ',:\n"') else text


def read(path: Path, key: str = "reproduce") -> dict:
    """What `save` wrote, checked; `ValueError` in one line for everything else. `key` is what errors call the file."""
    told, where = raw(path, key), f"{key}={path}"
    check(told, FIELDS, where, "")
    check(told["model"], MODEL, where, "model.")
    if len(told["adapters"]) > ADAPTERS:
        raise ValueError(f"{where}: tells of {len(told['adapters'])} adapters; {ADAPTERS} are the most")
    for number, one in enumerate(told["adapters"]):
        check(one, ADAPTER, where, f"adapters[{number}].")
    if told["result"] is not None:
        check(told["result"], RESULT, where, "result.")
    batch = told["batch"]
    plain = len(batch) == 2 and all(type(number) is int for number in batch)
    if not plain or not 0 <= batch[1] < batch[0] <= BATCH:
        raise ValueError(f"{where}: its batch is {str(batch)[:40]}, which is no size up to {BATCH} and a place in it")
    if told["precision"] not in PRECISIONS:
        raise ValueError(f"{where}: its precision is none of {', '.join(PRECISIONS)}")
    known(told["scheduler"], f"{where}: scheduler")
    return told


def raw(path: Path, key: str) -> dict:
    """The object of JSON in a PNG."""
    where = f"{key}={path}"
    if not path.is_file():
        raise ValueError(f"{where}: no such file; give a PNG that generate wrote")
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            text = picture.info.get(KEY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: not a PNG that can be read ({str(error).splitlines()[0][:100]})") from None
    if not isinstance(text, str):
        raise ValueError(f"{where}: does not say what it was made with; only PNGs that generate wrote do")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: what it says of how it was made is not JSON") from None
    if not isinstance(told, dict) or told.pop(KEY, None) != SCHEMA:
        raise ValueError(f"{where}: was made by another version of generate; this one reads {KEY}={SCHEMA}")
    return told


def check(told: dict, fields: dict, where: str, prefix: str) -> None:
    """Every field, none beside them, each of its type and within its limits."""
    if not isinstance(told, dict) or set(told) != set(fields):
        odd = sorted(set(fields) ^ set(told)) if isinstance(told, dict) else ["a list"]
        raise ValueError(
            f"{where}: what it says of how it was made is not complete, or more ({prefix}{str(odd[0])[:40]})"
        )
    for name, (types, least, most) in fields.items():
        value = told[name]
        size = len(value) if isinstance(value, str) else value
        fits = type(value) in types and (not isinstance(value, float) or math.isfinite(value))
        if fits and least is not None and value is not None:
            fits = least <= size <= most
        if not fits:
            raise ValueError(f"{where}: its {prefix}{name} is {str(value)[:40]!r}, which cannot be")


def named(file: Path) -> str:
    """What a LoRA file is called: as its run's folder, where all files are called the same."""
    folder = file.parent.parent if file.parent.name == "adapter" else file.parent
    return folder.name if file.name == "pytorch_lora_weights.safetensors" and folder.name else file.stem


def shown_path(path: Path | str) -> str:
    """A file's place without this machine's folders: from the current folder or the home, else its name alone."""
    path = Path(path)
    if not path.is_absolute():
        return path.as_posix()
    for home, sign in ((Path.cwd(), ""), (Path.home(), "~")):
        if path.is_relative_to(home):
            return (Path(sign) / path.relative_to(home)).as_posix()
    return path.name


def adapter(file: Path) -> dict:
    """What is told of a LoRA file; `tensors` is the digest without the header, by which other tools look files up."""
    with file.open("rb") as opened:
        opened.seek(8 + int.from_bytes(opened.read(8), "little"))
        tensors = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"file": shown_path(file), "digest": of_file(file), "tensors": tensors}


def unchanged(told: dict, where: str, what: str, mend: str) -> Path:
    """The file that a picture was made with; `ValueError` when it is missing, or has changed since."""
    file, was = Path(told["file"]).expanduser(), told["digest"]
    if not file.is_file():
        raise ValueError(f"{where}: its {what} {told['file']} (SHA-256 {was[:12]}…) is not here; {mend}")
    if (now := of_file(file)) != was:
        raise ValueError(
            f"{where}: its {what} {told['file']} has changed (SHA-256 {was[:12]}… then, {now[:12]}… now); {mend}"
        )
    return file
