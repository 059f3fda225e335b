"""Files of every kind that sdft writes, on narrow models with random weights, for `compatibility.py`."""

import json
from pathlib import Path

import torch
from torch import Tensor

from sdft.lora.architecture import get_model_architecture
from sdft.lora.file import DIFFUSERS_FILE, read_lora_file
from sdft.lora.formats import save_lora
from sdft.lora.resizing import resize_lora_file
from sdft.lora.scaling import find_adapter_layers
from sdft.lora.state_dict import build_adapter_state
from sdft.methods.lora import LoRA
from sdft.methods.textual_inversion import TextualInversion
from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.loading import load_stable_diffusion
from sdft.models.saving import save_pipeline
from sdft.models.single_file import save_single_file

NARROW_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "projection_dim": 64}
NARROW_VAE = {"block_out_channels": [32, 32, 32, 32]}
MODELS = {  # by name: the architecture that they are reduced from, and changes to its configurations
    "Stable Diffusion 1.5": (
        "sd15",
        {
            "unet": {"block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 64},
            "text_encoder": NARROW_TEXT,
            "vae": NARROW_VAE,
        },
    ),
    "Stable Diffusion XL": (
        "sdxl",
        {
            "unet": {
                "block_out_channels": [32, 64, 64],
                "attention_head_dim": [2, 4, 4],
                "cross_attention_dim": 64 + 96,
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 6 * 8 + 64,
            },
            "text_encoder": NARROW_TEXT,
            "text_encoder_2": NARROW_TEXT | {"hidden_size": 96},
            "vae": NARROW_VAE,
        },
    ),
}
ATTENTION_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
RESNET_TARGETS = ["conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"]
ALL_TARGETS = {
    "unet_targets": ATTENTION_TARGETS + RESNET_TARGETS,
    "text_encoder_targets": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
}
KINDS = {
    "LoRA": {},
    "LoRA, all layers": ALL_TARGETS,
    "rank-stabilized LoRA": {"use_rslora": True},
    "LoHa": {"adapter_type": "loha"},
    "LoHa, all layers": {"adapter_type": "loha"} | ALL_TARGETS,
    "LoKr": {"adapter_type": "lokr"},
    "LoKr, all layers": {"adapter_type": "lokr"} | ALL_TARGETS,
    "PiSSA": {"init_lora_weights": "pissa"},
    "DoRA": {"use_dora": True},
    "DoRA, all layers": {"use_dora": True} | ALL_TARGETS,
}
RESIZED_KIND = "LoRA of several ranks"
RANK, ALPHA, WEIGHT_SIZE = 4, 6.0, 0.05
PROMPTS = ["a photo of a cat", "A Café, 3 ½ naïve <b>'s</b>", "", "☕ 東京 42 x"]


def build_base(name: str, folder: Path):
    """A narrow model of `MODELS` with random weights, saved in `folder`; its layer names are the real ones."""
    configs, (architecture, changes) = folder.with_name("configs"), MODELS[name]
    for file in sorted((ASSETS_FOLDER / architecture).rglob("*.json")):
        config = json.loads(file.read_text()) | (
            changes.get(file.parent.name, {}) if file.name == "config.json" else {}
        )
        (configs / file.parent.name).mkdir(parents=True, exist_ok=True)
        (configs / file.parent.name / file.name).write_text(json.dumps(config))
    torch.manual_seed(0)
    model = load_stable_diffusion(str(configs), weights="random")
    save_pipeline(model, folder)
    return model


def write_adapters(folder: Path, base) -> tuple[dict[str, str], dict[str, dict[str, Tensor]]]:
    """Files by `KIND/FORMAT`, and the changes of the weights that they stand for by kind."""
    files, changes = {}, {}
    for number, (kind, options) in enumerate(KINDS.items()):
        model = load_stable_diffusion(str(folder / "base"))
        method = LoRA(rank=RANK, alpha=ALPHA, text_encoder=True, **options)
        method.prepare(model)
        torch.manual_seed(number)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += WEIGHT_SIZE * torch.randn_like(parameter)
        method.save(model, folder / f"adapter-{number}", "mine")
        files |= list_formats(kind, folder / f"adapter-{number}")
        changes[kind] = merge_adapter(model, base)
    architecture = get_model_architecture(base)
    lora = read_lora_file(folder / "adapter-0", [architecture])
    parts = resize_lora_file(lora, None, 0.7).parts
    adapters = {part: build_adapter_state(part, layers) for part, layers in parts.items()}
    save_lora(adapters, folder / "resized", "mine", architecture)
    changes[RESIZED_KIND] = {
        f"{part}.{layer.removeprefix('text_model.')}": value.compute_delta()
        for part, layers in parts.items()
        for layer, value in layers.items()
    }
    return files | list_formats(RESIZED_KIND, folder / "resized"), changes


def list_formats(kind: str, folder: Path) -> dict[str, str]:
    return {f"{kind}/diffusers": str(folder / DIFFUSERS_FILE), f"{kind}/kohya": str(folder / "mine-kohya.safetensors")}


@torch.no_grad()
def merge_adapter(model, base) -> dict[str, Tensor]:
    """The change of each layer's weight by `part.layer`, as peft merges it."""
    changes = {}
    for part, module in model.components.items():
        for name, layer in find_adapter_layers(module).items():
            layer.merge()
            before = base.components[part].get_submodule(name).weight.double()
            changes[f"{part}.{name.removeprefix('text_model.')}"] = layer.get_base_layer().weight.double() - before
    return changes


def write_other_files(folder: Path, base) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, Tensor]]]:
    """Files by kind and name, and the tensors that a reader should find in each."""
    save_pipeline(base, folder / "pipeline")
    save_single_file(base, folder / "merged.safetensors", torch.float32, {})
    inverted = load_stable_diffusion(str(folder / "base"))
    method = TextualInversion("<cat>", num_vectors=2)
    method.prepare(inverted)
    method.save(inverted, folder / "embedding", "mine")
    files = {
        "pipelines": {"`pipeline/`, `merge to=FOLDER`": str(folder / "pipeline")},
        "single_files": {"`merge to=NAME.safetensors`": str(folder / "merged.safetensors")},
        "embeddings": {"`embedding/`": str(folder / "embedding" / "learned_embeds.safetensors")},
    }
    weights = list_weights(base) | {
        "tokens": base.tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    }
    rows = {
        inverted.component_names[part]: network.get_input_embeddings().rows.detach()
        for part, network in inverted.text_encoders.items()
    }
    names = [next(iter(names)) for names in files.values()]
    return files, dict(zip(names, (weights, weights, rows), strict=True))


def list_weights(base) -> dict[str, Tensor]:
    """All weights by `part.layer.weight`."""
    return {
        f"{part}.{key.removeprefix('text_model.')}": weight
        for part, module in {**base.components, "vae": base.vae}.items()
        for key, weight in module.state_dict().items()
    }
