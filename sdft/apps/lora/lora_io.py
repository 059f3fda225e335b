"""LoRA files as the programs that change them read and write them, each with a word on what it was made of."""

import json
from pathlib import Path

import torch

from sdft.lora.architecture import list_architectures
from sdft.lora.file import DIFFUSERS_FILE, LoraFile, read_lora_file
from sdft.lora.formats import save_lora
from sdft.lora.state_dict import build_adapter_state

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MAX_HISTORY_LENGTH = 20_000  # letters of a file's own history that are taken on


def read_lora_files(paths: list[str], architecture: str | None) -> list[LoraFile]:
    """All of them, of the architecture that is asked for, or each of one that this package carries."""
    among = list_architectures(architecture)
    try:
        return [read_lora_file(Path(path), among) for path in paths]
    except ValueError as error:
        hint = " (architecture=FOLDER names another model)" if "fit" in str(error) and architecture is None else ""
        raise ValueError(f"{error}{hint}") from None


def parse_dtype(word: str) -> torch.dtype:
    if word not in DTYPES:
        raise ValueError(f"dtype={word}: choose one of {', '.join(DTYPES)}")
    return DTYPES[word]


def check_file_name(name: str) -> str:
    if not name or Path(name).name != name or not name.isprintable() or len(name.encode()) > 200:
        raise ValueError(f"name={name[:200]}: give the name of a file, without folders")
    return name


def build_provenance(by: str, files: list[LoraFile], weights: list[float] | None = None, **words) -> dict[str, str]:
    """For the header of what is written: by which program, with which words, of which files."""
    of = [{"file": lora_display_name(file.path), "sha256": file.digest} for file in files]
    for one, weight in zip(of, weights or [], strict=False):
        one["weight"] = weight
    for one, file in zip(of, files, strict=True):
        if 0 < len(before := file.metadata.get("sdft", "")) < MAX_HISTORY_LENGTH:
            one["made"] = before
    return {"sdft": json.dumps({"created_by": by, **words, "of": of}, ensure_ascii=False)}


def lora_display_name(path: Path) -> str:
    """A file by its name; many have the same, and are told by their folder."""
    folder = path.resolve().parent
    folder = folder.parent if folder.name == "adapter" else folder
    return f"{folder.name}/{path.name}" if path.name == DIFFUSERS_FILE else path.name


def save_lora_formats(parts: dict, folder: Path, name: str, metadata: dict[str, str], dtype: str) -> None:
    """In both formats, and say where."""
    adapters = {part: build_adapter_state(part, layers) for part, layers in parts.items()}
    save_lora(adapters, folder, check_file_name(name), metadata, parse_dtype(dtype))
    print(f"saved    {folder / DIFFUSERS_FILE}\n         {folder / f'{name}-kohya.safetensors'}")


def format_ranks(ranks: list[int]) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
