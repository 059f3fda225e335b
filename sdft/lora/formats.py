"""Write the diffusers LoRA format, with alpha equal to the rank, and the kohya format, with alpha; load any format."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from sdft.lora.architecture import Architecture, get_model_architecture
from sdft.lora.attention import use_lora_attention
from sdft.lora.dora import expand_dora
from sdft.lora.families import is_text_encoder
from sdft.lora.file import DIFFUSERS_FILE, read_lora_file
from sdft.lora.peft_config import PEFT_CONFIG_KEY
from sdft.lora.state_dict import (
    KOHYA_SUFFIXES,
    AdapterState,
    build_adapter_state,
    get_adapter_state,
    pad_rank,
    split_tensor_name,
)
from sdft.models.precision import add_adapters_in_fp32
from sdft.runs.files import atomic_write
from sdft.runs.terminal import print_text

OMITTED_CONFIG_KEYS = ("task_type", "runtime_config", "base_model_name_or_path")  # the last is a local path
DORA_WARNING = (
    "only sdft and LyCORIS read DoRA in the kohya format as trained; sd-scripts, ComfyUI, A1111 and diffusers get another. "
    "The nearest LoRA for them: sdft convert adapter=FILE to=kohya base=MODEL rank=32"
)
MAX_ERROR_LENGTH = 300  # characters of a loader's error message
FORMAT_METADATA_KEYS = {PEFT_CONFIG_KEY, "ss_network_module", "ss_network_dim", "ss_network_alpha"}  # recomputed
FILE_METADATA_KEYS = {"format", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"}  # of one file only


def save_lora(
    adapters: dict[str, AdapterState],
    folder: Path,
    name: str,
    architecture: Architecture,
    metadata: dict[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `pytorch_lora_weights.safetensors` (diffusers) and `NAME-kohya.safetensors`, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        DIFFUSERS_FILE: (to_diffusers_format(adapters), {}),
        f"{name}-kohya.safetensors": to_kohya_format(adapters, name, architecture),
    }
    metadata = architecture.family.build_metadata() | filter_metadata(metadata or {})
    for file, (tensors, format_metadata) in files.items():
        write_safetensors(folder / file, tensors, metadata | format_metadata, dtype)


def filter_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Drop the metadata that is specific to a file or a format."""
    return {key: value for key, value in metadata.items() if key not in FORMAT_METADATA_KEYS | FILE_METADATA_KEYS}


def write_safetensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], dtype: torch.dtype = torch.float32
) -> None:
    from safetensors.torch import save

    tensors = {key: tensor.detach().cpu().to(dtype).contiguous() for key, tensor in tensors.items()}
    with atomic_write(path) as file:  # file permissions follow the umask
        file.write_bytes(save(tensors, metadata={"format": "pt", **metadata}))


def to_diffusers_format(adapters: dict[str, AdapterState]) -> dict[str, Tensor]:
    """Tensors under peft names with the part as prefix; the scale is part of `lora_B`, so that alpha equals the rank.

    Older readers know no alpha and scale by the ratio of ranks within a part, so that all layers are padded to one rank.
    """
    tensors = {}
    for part, adapter in adapters.items():
        alphas, rank = adapter.compute_alphas(), adapter.rank
        for key, weight in adapter.tensors.items():
            layer, kind = split_tensor_name(key)
            layer_rank = len(adapter.tensors[f"{layer}.lora_A.weight"])
            if kind == "lora_B.weight" and alphas[layer] != layer_rank:
                weight = weight.float() * (alphas[layer] / layer_rank)
            tensors[f"{part}.{key}"] = pad_rank(weight, kind, rank - layer_rank)
    return tensors


def build_peft_metadata(part: str, adapter: AdapterState) -> dict:
    """The peft config of one part with its prefix, as diffusers takes it."""
    settings = adapter.settings | {"target_modules": sorted(adapter.settings["target_modules"])}
    return {f"{part}.{key}": v for key, v in settings.items() if v is not None and key not in OMITTED_CONFIG_KEYS}


def to_kohya_format(
    adapters: dict[str, AdapterState], name: str, architecture: Architecture
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors `LAYER.lora_down.weight`, `.lora_up.weight`, `.alpha` with kohya's names of the layers, and metadata.

    Each part gets one alpha, with the factors rescaled: diffusers applies the most common alpha to all layers.
    """
    tensors, part_alphas, omitted = {}, [], set()
    for part, adapter in adapters.items():
        alphas = adapter.compute_alphas()
        part_alphas.append(part_alpha := max(alphas.values(), key=abs))
        for key, weight in adapter.tensors.items():
            layer, kind = split_tensor_name(key)
            if (kohya_name := architecture.get_kohya_name(part, layer)) is None:
                omitted.add(f"{part}.{layer}")
                continue
            if kind == "lora_magnitude_vector":  # one magnitude per output, with the weight's number of dimensions
                weight = weight.reshape(-1, *[1] * (len(adapter.shapes[layer]) - 1))
            if kind == "lora_B.weight" and alphas[layer] != part_alpha:
                weight = weight * (alphas[layer] / part_alpha)
            tensors[f"{kohya_name}.{KOHYA_SUFFIXES[kind]}"] = weight
            tensors[f"{kohya_name}.alpha"] = torch.tensor(part_alpha)
    for layer in sorted(omitted):
        print_text(
            f"warning    {name}: {layer} is left out of the kohya format, which has no such layer", file=sys.stderr
        )
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(adapter.rank for adapter in adapters.values())),
        "ss_network_alpha": str(max(part_alphas)),
        "ss_output_name": name,
    }
    return tensors, metadata


def load_lora(model, path: Path, name: str = "default") -> None:
    """Load a LoRA file of any format as adapter `name`; `ValueError` unless every tensor matches a layer.

    diffusers receives the tensors in its own format: from other formats it drops DoRA and per-layer alphas.
    """
    file = read_lora_file(path, [get_model_architecture(model)])
    try:
        for part, layers in file.parts.items():
            layers, network = expand_dora(part, model.components[part], layers), model.components[part]
            with add_adapters_in_fp32(network):
                inject_adapter(network, part, build_adapter_state(part, layers), name)
            if not is_text_encoder(part):
                use_lora_attention(network)  # as in training, so that images are equal
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        reason = f"{reason[:MAX_ERROR_LENGTH]}…" if len(reason) > MAX_ERROR_LENGTH else reason
        raise ValueError(f"adapter={file.path}: does not fit {model.name} ({reason})") from None
    model.requires_grad_(False).eval()


def inject_adapter(module, part: str, adapter: AdapterState, name: str) -> None:
    """Add an adapter to one part; `ValueError` unless all its tensors are loaded unchanged."""
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()  # its warnings are about what is checked below
    tensors = {f"{part}.{key}": weight for key, weight in adapter.tensors.items()}
    options = {"adapter_name": name, "metadata": build_peft_metadata(part, adapter)}
    if is_text_encoder(part):
        StableDiffusionXLPipeline.load_lora_into_text_encoder(tensors, None, module, prefix=part, **options)
    else:
        StableDiffusionXLPipeline.load_lora_into_unet(tensors, None, module, **options)
    loaded = get_adapter_state(part, module, name).tensors
    for key, tensor in adapter.tensors.items():
        if key not in loaded or not torch.equal(loaded[key].float().cpu(), tensor.float()):
            raise ValueError(f"{key} was not loaded")
