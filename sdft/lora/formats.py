"""LoRA files that other tools open: the diffusers format and the kohya format, both with alpha, and back."""

import json
from pathlib import Path

import torch
from torch import Tensor

from sdft.lora.architecture import KOHYA_PREFIX, of_model
from sdft.lora.file import DIFFUSERS_FILE, PEFT, read
from sdft.lora.state_dict import KOHYA_KINDS, Adapter, of_layers, split, trained
from sdft.runs.files import whole

UNTOLD = ("task_type", "runtime_config", "base_model_name_or_path")  # the last is a folder of this machine
MOST = 300  # letters of what the loader says
OF_ONE_FORM = {PEFT, "ss_network_module", "ss_network_dim", "ss_network_alpha"}  # written anew
OF_ONE_FILE = {"format", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"}  # not true of another


def save_lora(
    adapters: dict[str, Adapter],
    folder: Path,
    name: str,
    metadata: dict[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `pytorch_lora_weights.safetensors` (diffusers) and `NAME-kohya.safetensors`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {DIFFUSERS_FILE: diffusers_format(adapters), f"{name}-kohya.safetensors": kohya_format(adapters, name)}
    for file, (tensors, told) in files.items():
        write(folder / file, tensors, kept(metadata or {}) | told, dtype)


def kept(metadata: dict[str, str]) -> dict[str, str]:
    """What the header of a file says that is true of its weights in another file and form, too."""
    return {key: value for key, value in metadata.items() if key not in OF_ONE_FORM | OF_ONE_FILE}


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], dtype: torch.dtype = torch.float32) -> None:
    from safetensors.torch import save

    plain = {key: tensor.detach().cpu().to(dtype).contiguous() for key, tensor in tensors.items()}
    with whole(path) as file:
        file.write_bytes(save(plain, metadata={"format": "pt", **metadata}))  # readable by whom the umask allows


def diffusers_format(adapters: dict[str, Adapter]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """peft names below the part's name, with the adapter's configuration, alpha among it, as metadata."""
    tensors, config = {}, {}
    for part, adapter in adapters.items():
        tensors |= {f"{part}.{key}": weight for key, weight in adapter.tensors.items()}
        settings = adapter.settings | {"target_modules": sorted(adapter.settings["target_modules"])}
        config |= {f"{part}.{key}": v for key, v in settings.items() if v is not None and key not in UNTOLD}
    return tensors, {PEFT: json.dumps(config, default=str, sort_keys=True)}


def kohya_format(adapters: dict[str, Adapter], name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`lora_unet_LAYER.lora_down.weight`, `.lora_up.weight`, `.alpha`, dots in layer names written as underscores.

    Alphas that differ in a part are made one, and the factors larger or smaller: diffusers takes the most common for all.
    """
    tensors, levels = {}, []
    for part, adapter in adapters.items():
        alphas = adapter.alphas()
        levels.append(level := max(alphas.values(), key=abs))
        for key, weight in adapter.tensors.items():
            layer, kind = split(key)
            flat = f"{KOHYA_PREFIX[part]}_{layer.replace('.', '_')}"
            if kind == "lora_magnitude_vector":  # one magnitude an output, shaped like the layer's weight
                weight = weight.reshape(-1, *[1] * (len(adapter.shapes[layer]) - 1))
            if kind == "lora_B.weight" and alphas[layer] != level:
                weight = weight * (alphas[layer] / level)
            tensors[f"{flat}.{KOHYA_KINDS[kind]}"] = weight
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
    given = read(path, [of_model(model)])
    try:
        for part, layers in given.parts.items():
            put(model.parts[part], part, of_layers(part, layers), name)
    except (RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        told = f"{told[:MOST]}…" if len(told) > MOST else told
        raise ValueError(f"adapter={given.path}: does not fit {model.name} ({told})") from None
    model.requires_grad_(False).eval()


def put(module, part: str, adapter: Adapter, name: str) -> None:
    """Add an adapter to one part; what did not arrive as it was is an error."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it warns of what is checked here
    tensors, metadata = diffusers_format({part: adapter})
    into = getattr(StableDiffusionPipeline, f"load_lora_into_{part}")
    into(tensors, None, **{part: module}, adapter_name=name, metadata=json.loads(metadata[PEFT]))
    arrived = trained(part, module, name).tensors
    for key, tensor in adapter.tensors.items():
        if key not in arrived or not torch.equal(arrived[key].float().cpu(), tensor.float()):
            raise ValueError(f"{key} was not taken over")
