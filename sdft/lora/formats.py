"""LoRA files that other tools open: the diffusers format and the kohya format, both with alpha, and back."""

import json
from pathlib import Path

import torch
from torch import Tensor

from sdft.lora.architecture import KOHYA_PREFIXES, get_model_architecture
from sdft.lora.file import DIFFUSERS_FILE, PEFT_CONFIG_KEY, read_lora_file
from sdft.lora.state_dict import KOHYA_SUFFIXES, AdapterState, build_adapter_state, get_adapter_state, split_tensor_name
from sdft.runs.files import atomic_write

OMITTED_CONFIG_KEYS = ("task_type", "runtime_config", "base_model_name_or_path")  # the last is a folder of this machine
MAX_ERROR_LENGTH = 300  # letters of what the loader says
FORMAT_METADATA_KEYS = {PEFT_CONFIG_KEY, "ss_network_module", "ss_network_dim", "ss_network_alpha"}  # written anew
FILE_METADATA_KEYS = {"format", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"}  # not true of another


def save_lora(
    adapters: dict[str, AdapterState],
    folder: Path,
    name: str,
    metadata: dict[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `pytorch_lora_weights.safetensors` (diffusers) and `NAME-kohya.safetensors`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        DIFFUSERS_FILE: to_diffusers_format(adapters),
        f"{name}-kohya.safetensors": to_kohya_format(adapters, name),
    }
    for file, (tensors, told) in files.items():
        write_safetensors(folder / file, tensors, filter_metadata(metadata or {}) | told, dtype)


def filter_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """What the header of a file says that is true of its weights in another file and form, too."""
    return {key: value for key, value in metadata.items() if key not in FORMAT_METADATA_KEYS | FILE_METADATA_KEYS}


def write_safetensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], dtype: torch.dtype = torch.float32
) -> None:
    from safetensors.torch import save

    plain = {key: tensor.detach().cpu().to(dtype).contiguous() for key, tensor in tensors.items()}
    with atomic_write(path) as file:
        file.write_bytes(save(plain, metadata={"format": "pt", **metadata}))  # readable by whom the umask allows


def to_diffusers_format(adapters: dict[str, AdapterState]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """peft names below the part's name, with the adapter's configuration, alpha among it, as metadata."""
    tensors, config = {}, {}
    for part, adapter in adapters.items():
        tensors |= {f"{part}.{key}": weight for key, weight in adapter.tensors.items()}
        settings = adapter.settings | {"target_modules": sorted(adapter.settings["target_modules"])}
        config |= {
            f"{part}.{key}": v for key, v in settings.items() if v is not None and key not in OMITTED_CONFIG_KEYS
        }
    return tensors, {PEFT_CONFIG_KEY: json.dumps(config, default=str, sort_keys=True)}


def to_kohya_format(adapters: dict[str, AdapterState], name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`lora_unet_LAYER.lora_down.weight`, `.lora_up.weight`, `.alpha`, dots in layer names written as underscores.

    Alphas that differ in a part are made one, and the factors larger or smaller: diffusers takes the most common for all.
    """
    tensors, levels = {}, []
    for part, adapter in adapters.items():
        alphas = adapter.compute_alphas()
        levels.append(level := max(alphas.values(), key=abs))
        for key, weight in adapter.tensors.items():
            layer, kind = split_tensor_name(key)
            flat = f"{KOHYA_PREFIXES[part]}_{layer.replace('.', '_')}"
            if kind == "lora_magnitude_vector":  # one magnitude an output, shaped like the layer's weight
                weight = weight.reshape(-1, *[1] * (len(adapter.shapes[layer]) - 1))
            if kind == "lora_B.weight" and alphas[layer] != level:
                weight = weight * (alphas[layer] / level)
            tensors[f"{flat}.{KOHYA_SUFFIXES[kind]}"] = weight
            tensors[f"{flat}.alpha"] = torch.tensor(level)
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(adapter.rank for adapter in adapters.values())),
        "ss_network_alpha": str(max(levels)),
        "ss_output_name": name,
    }
    return tensors, metadata


def load_lora(model, path: Path, name: str = "default") -> None:
    """Load a LoRA file of any kind as the adapter `name`; every tensor must find its layer, or `ValueError`.

    What diffusers is handed is what was read, in its own format: of other formats it loses alphas that differ, and DoRA.
    """
    given = read_lora_file(path, [get_model_architecture(model)])
    try:
        for part, layers in given.parts.items():
            inject_adapter(model.parts[part], part, build_adapter_state(part, layers), name)
    except (RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        told = f"{told[:MAX_ERROR_LENGTH]}…" if len(told) > MAX_ERROR_LENGTH else told
        raise ValueError(f"adapter={given.path}: does not fit {model.name} ({told})") from None
    model.requires_grad_(False).eval()


def inject_adapter(module, part: str, adapter: AdapterState, name: str) -> None:
    """Add an adapter to one part; what did not arrive as it was is an error."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it warns of what is checked here
    tensors, metadata = to_diffusers_format({part: adapter})
    into = getattr(StableDiffusionPipeline, f"load_lora_into_{part}")
    into(tensors, None, **{part: module}, adapter_name=name, metadata=json.loads(metadata[PEFT_CONFIG_KEY]))
    arrived = get_adapter_state(part, module, name).tensors
    for key, tensor in adapter.tensors.items():
        if key not in arrived or not torch.equal(arrived[key].float().cpu(), tensor.float()):
            raise ValueError(f"{key} was not taken over")
