"""Security checks: weights must be safetensors, and a model folder must hold no code."""

import re
from collections.abc import Iterable
from pathlib import Path

from sdft.models.family import read_config

ALLOWED_LIBRARIES = (
    None,
    "diffusers",
    "transformers",
    "stable_diffusion",
    "stable_diffusion_xl",
)  # of the classes in model_index.json


def choose_variants(folder: Path, variant: str | None, parts: Iterable[str]) -> dict[str, str | None]:
    """By network in `parts` the variant to load: `variant` where it exists, else the plain weights, else the only variant.

    `ValueError` for weights that are missing or no safetensors, for an unknown `variant`, and where several remain.
    """
    found = {part: find_variants(folder, part) for part in parts}
    known = sorted({str(name) for names in found.values() for name in names if name})
    if variant and variant not in known:
        raise ValueError(f"model.variant={variant}: {folder} has {', '.join(known) or 'no variants'}")
    chosen = {}
    for part, names in found.items():
        candidates = [name for name in (variant, None) if name in names] or list(names)
        if len(candidates) > 1 and None not in candidates:
            raise ValueError(f"model.variant=null: {part}/ of {folder} has {', '.join(sorted(names))}; choose one")
        chosen[part] = candidates[0]
    return chosen


def find_variants(folder: Path, part: str) -> set[str | None]:
    """The variants of a network's weights, such as fp16; None: the plain weights."""
    for file in sorted((folder / part).glob("*.safetensors")):
        check_safetensors(file, "model.name")
    variants = {variant for _, variant, _ in list_weight_files(folder, part)}
    if not variants:
        stem = get_weights_stem(part)
        existing = ", ".join(file.name for file in sorted((folder / part).iterdir())) or "nothing"
        raise ValueError(
            f"model.name={folder}: no {stem}.safetensors in {part}/, only {existing}; pickles can hold code and "
            "are not loaded"
        )
    return variants


def get_weights_stem(part: str) -> str:
    return "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"


def list_weight_files(folder: Path, part: str) -> list[tuple[Path, str | None, bool]]:
    """The weights files of a network, with their variant and whether each is one of several files."""
    pattern = re.compile(rf"{get_weights_stem(part)}(?:\.([\w-]+?))?(-\d+-of-\d+)?\.safetensors")
    files = sorted((folder / part).glob("*.safetensors"))
    return [(file, match[1], bool(match[2])) for file in files if (match := pattern.fullmatch(file.name))]


def check_no_custom_code(folder: Path) -> None:
    """`ValueError` for configurations that name code outside the allowed libraries, which would otherwise be ignored."""
    index = read_config(folder, "model_index.json", required=False)
    classes = {key: value for key, value in index.items() if isinstance(value, list)}
    foreign = [key for key, value in classes.items() if value[:1] != [None] and value[0] not in ALLOWED_LIBRARIES]
    if foreign or isinstance(index.get("_class_name"), list):
        key = (foreign or ["_class_name"])[0]
        raise ValueError(f"model.name={folder}: model_index.json names custom code ({key}), which is not supported")
    for file in sorted(folder.glob("*/*config.json")):
        name = file.relative_to(folder).as_posix()
        if "auto_map" in read_config(folder, name):
            raise ValueError(f"model.name={folder}: {name} names custom code (auto_map), which is not supported")


def check_safetensors(file: Path, key: str) -> None:
    """`ValueError` for weights that are not safetensors; pickles are not loaded, as they can hold code."""
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors":
        raise ValueError(f"{key}={file}: only .safetensors files are supported; pickles can hold code")
    try:
        safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{key}={file}: not a safetensors file ({error})") from None
