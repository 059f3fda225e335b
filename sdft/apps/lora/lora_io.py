"""Read LoRA files for the LoRA apps, and write them with their provenance in the header."""

import json
from contextlib import suppress
from pathlib import Path

import torch

from sdft.lora.architecture import Architecture, list_architectures
from sdft.lora.file import DIFFUSERS_FILE, LoraFile, read_lora_file
from sdft.lora.formats import DORA_WARNING, save_lora
from sdft.lora.layer_matching import ArchitectureMismatchError
from sdft.lora.low_rank import LowRankLayer
from sdft.lora.state_dict import AdapterState, build_adapter_state
from sdft.runs.files import check_name, find_home
from sdft.runs.terminal import print_text

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MAX_HISTORY_LENGTH = 20_000  # characters of a source's own provenance to copy


def read_lora_files(paths: list[str], architecture: str | None, offsets: bool = False) -> list[LoraFile]:
    """Read files of the given architecture, or of any bundled one, of the same if possible; `offsets`: see `read_lora_file`."""
    architectures = list_architectures(architecture)
    try:
        files = [read_lora_file(Path(path), architectures, offsets) for path in paths]
        candidates = {file.architecture.name: file.architecture for file in files}
        for candidate in candidates.values() if len(candidates) > 1 else ():
            with suppress(ArchitectureMismatchError):
                return [read_lora_file(Path(path), [candidate], offsets) for path in paths]
        return files
    except ArchitectureMismatchError as error:
        hint = " (architecture=FOLDER selects another model)" if architecture is None else ""
        raise ValueError(f"{error}{hint}") from None


def build_adapters(path: Path, parts: dict[str, dict[str, LowRankLayer]]) -> dict[str, AdapterState]:
    """The adapters of layers from the file `path`; `ValueError` for a DoRA that cannot be written."""
    try:
        return {part: build_adapter_state(part, layers) for part, layers in parts.items()}
    except ValueError as error:
        raise ValueError(f"adapter={path}: {error}") from None


def parse_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype={name}: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def check_file_name(name: str) -> str:
    if not name or Path(name).name != name or not name.isprintable():
        raise ValueError(f"name={name[:200]}: give a file name without folders")
    return check_name("name", name)


def build_provenance(app: str, files: list[LoraFile], weights: list[float] | None = None, **settings) -> dict[str, str]:
    """Header metadata that records the app, its settings and its source files."""
    sources = [{"file": format_lora_name(file.path), "sha256": file.digest} for file in files]
    for source, weight in zip(sources, weights or [], strict=False):
        source["weight"] = weight
    for source, file in zip(sources, files, strict=True):
        if 0 < len(history := file.metadata.get("sdft", "")) < MAX_HISTORY_LENGTH:
            source["history"] = history
    return {"sdft": json.dumps({"created_by": app, **settings, "sources": sources}, ensure_ascii=False)}


def format_lora_name(path: Path) -> str:
    """The file name, with the folder for the name that all diffusers files share."""
    folder = path.resolve().parent
    folder = folder.parent if folder.name == "adapter" else folder
    is_named = path.name != DIFFUSERS_FILE or folder == find_home()  # the home folder has the user's name
    return path.name if is_named else f"{folder.name}/{path.name}"


def save_lora_formats(
    parts: dict, architecture: Architecture, folder: Path, name: str, metadata: dict[str, str], dtype: str
) -> None:
    """Save in both formats and print the paths."""
    adapters = {part: build_adapter_state(part, layers) for part, layers in parts.items()}
    save_lora(adapters, folder, check_file_name(name), architecture, metadata, parse_dtype(dtype))
    print_text(f"saved      {folder / DIFFUSERS_FILE}", f"           {folder / f'{name}-kohya.safetensors'}")
    if any(layer.magnitude is not None for layers in parts.values() for layer in layers.values()):
        print_text(f"warning    {DORA_WARNING}")


def format_ranks(ranks: list[int]) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
