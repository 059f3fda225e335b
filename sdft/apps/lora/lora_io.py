"""LoRA files as the programs that change them read and write them, each with a word on what it was made of."""

import json
from pathlib import Path

import torch

from sdft.lora.architecture import known
from sdft.lora.file import DIFFUSERS_FILE, LoraFile, read
from sdft.lora.formats import save_lora
from sdft.lora.state_dict import of_layers

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MOST = 20_000  # letters of a file's own history that are taken on


def opened(paths: list[str], architecture: str | None) -> list[LoraFile]:
    """All of them, of the architecture that is asked for, or each of one that this package carries."""
    among = known(architecture)
    try:
        return [read(Path(path), among) for path in paths]
    except ValueError as error:
        hint = " (architecture=FOLDER names another model)" if "fit" in str(error) and architecture is None else ""
        raise ValueError(f"{error}{hint}") from None


def dtype_of(word: str) -> torch.dtype:
    if word not in DTYPES:
        raise ValueError(f"dtype={word}: choose one of {', '.join(DTYPES)}")
    return DTYPES[word]


def file_name(name: str) -> str:
    if not name or Path(name).name != name or not name.isprintable() or len(name.encode()) > 200:
        raise ValueError(f"name={name[:200]}: give the name of a file, without folders")
    return name


def record(by: str, files: list[LoraFile], weights: list[float] | None = None, **words) -> dict[str, str]:
    """For the header of what is written: by which program, with which words, of which files."""
    of = [{"file": called(file.path), "sha256": file.digest} for file in files]
    for one, weight in zip(of, weights or [], strict=False):
        one["weight"] = weight
    for one, file in zip(of, files, strict=True):
        if 0 < len(before := file.metadata.get("sdft", "")) < MOST:
            one["made"] = before
    return {"sdft": json.dumps({"made_by": by, **words, "of": of}, ensure_ascii=False)}


def called(path: Path) -> str:
    """A file by its name; many have the same, and are told by their folder."""
    folder = path.resolve().parent
    folder = folder.parent if folder.name == "adapter" else folder
    return f"{folder.name}/{path.name}" if path.name == DIFFUSERS_FILE else path.name


def save(parts: dict, folder: Path, name: str, metadata: dict[str, str], dtype: str) -> None:
    """In both formats, and say where."""
    adapters = {part: of_layers(part, layers) for part, layers in parts.items()}
    save_lora(adapters, folder, file_name(name), metadata, dtype_of(dtype))
    print(f"saved    {folder / DIFFUSERS_FILE}\n         {folder / f'{name}-kohya.safetensors'}")


def ranks_told(ranks: list[int]) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
