"""Where the weights of a network lie in the files of a model folder in the diffusers layout."""

from pathlib import Path

from torch import nn

from sdft.models.checkpoint_file import FLOAT_TYPES
from sdft.models.clip_text_model import add_text_model_prefix
from sdft.models.original_layout import OriginalWeight
from sdft.models.safetensors_check import list_weight_files
from sdft.models.weight_sources import FileWeights


def find_folder_weights(
    network: nn.Module, folder: Path, part: str, variant: str | None
) -> tuple[FileWeights, list[str]]:
    """The places of a network's weights, and the keys that the files lack; `ValueError` for other shapes and for integers."""
    from safetensors import safe_open

    is_text_encoder = part.startswith("text_encoder")
    normalize = add_text_model_prefix if is_text_encoder else str
    found = {}
    for file in choose_files(folder, part, variant, prefers_several=not is_text_encoder):
        with safe_open(file, "pt") as reader:
            for key in reader.keys():  # noqa: SIM118  not a dict
                content = reader.get_slice(key)
                found[normalize(key)] = file, key, list(content.get_shape()), content.get_dtype()
    places, missing = {}, []
    for key, weight in network.state_dict().items():
        if normalize(key) not in found:
            missing.append(key)
            continue
        file, name, shape, dtype = found[normalize(key)]
        if shape != list(weight.shape):
            raise ValueError(f"{name} has the shape {shape} instead of {list(weight.shape)}")
        if dtype not in FLOAT_TYPES:
            raise ValueError(f"{name} is {dtype}; quantized weights are not supported")
        places[key] = file, OriginalWeight(name)
    return FileWeights(places), missing


def choose_files(folder: Path, part: str, variant: str | None, prefers_several: bool) -> list[Path]:
    """One file, or the several that hold a network; where both exist, diffusers reads the several, transformers the one."""
    files = [(file, is_split) for file, name, is_split in list_weight_files(folder, part) if name == variant]
    preferred = [file for file, is_split in files if is_split == prefers_several]
    return preferred or [file for file, _ in files]
