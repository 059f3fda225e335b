"""Save Stable Diffusion in one file in the original layout (Rombach et al., 2022), which most tools read.

The UNet numbers its down blocks and its up blocks in one list each, the autoencoder numbers its decoder blocks in reverse.
The text encoder uses CLIP's names (1.x), or OpenCLIP's, with one matrix for query, key and value (2.x).
"""

from pathlib import Path

import torch
from torch import Tensor

from sdft.models.original_names import map_unet_layers
from sdft.models.stable_diffusion import StableDiffusion
from sdft.runs.files import atomic_write

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
CLIP_PREFIX, OPEN_CLIP_PREFIX = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
VAE_ATTENTION_NAMES = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_BLOCK_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPEN_CLIP_WIDTH = 1024


def save_single_file(model: StableDiffusion, path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    tensors = {key: weight.detach().cpu().to(dtype).contiguous() for key, weight in to_original_layout(model).items()}
    version = "v2" if is_open_clip(model) else "v1"
    header = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"stable-diffusion-{version}",
        "modelspec.prediction_type": {"epsilon": "epsilon", "v_prediction": "v"}[model.prediction_type],
    }
    with atomic_write(path) as file:
        save_file(tensors, file, metadata=header | metadata)


def to_original_layout(model: StableDiffusion) -> dict[str, Tensor]:
    """All weights under their original names; `ValueError` for layers that the original layout lacks."""
    unet, vae = model.unet.state_dict(), model.vae.state_dict()
    tensors = {
        UNET_PREFIX + key: weight for key, weight in rename_keys(unet, map_unet_layers(model.unet), "unet").items()
    }
    pairs = map_vae_layers(len(model.vae.config.block_out_channels), model.vae.config.layers_per_block)
    for key, weight in rename_keys(vae, pairs, "vae").items():
        # attention projections are linear in diffusers, 1 x 1 convolutions in the original layout
        is_projection = ".attn_1." in key and key.endswith("weight") and weight.ndim == 2
        tensors[VAE_PREFIX + key] = weight[:, :, None, None] if is_projection else weight
    text_encoder = {k.removeprefix("text_model."): v for k, v in model.clip_l.state_dict().items()}
    text_encoder.pop("embeddings.position_ids", None)
    if is_open_clip(model):
        return tensors | to_open_clip(text_encoder)
    return tensors | {CLIP_PREFIX + key: weight for key, weight in text_encoder.items()}


def rename_keys(weights: dict[str, Tensor], pairs: list[tuple[str, str]], part: str) -> dict[str, Tensor]:
    """Replace the longest matching layer name in each key."""
    pairs, renamed = sorted(pairs, key=lambda pair: -len(pair[0])), {}
    for key, weight in weights.items():
        match = next((pair for pair in pairs if key.startswith(pair[0] + ".")), None)
        if match is None:
            raise ValueError(f"{part}.{key}: the original layout has no such layer; save to a folder instead")
        renamed[match[1] + key.removeprefix(match[0])] = weight
    return renamed


def map_vae_layers(blocks: int, layers: int) -> list[tuple[str, str]]:
    """Pairs of (diffusers layer, original layer)."""
    pairs = [(name, name) for name in ("quant_conv", "post_quant_conv")]
    for side, direction, count in (("encoder", "down", layers), ("decoder", "up", layers + 1)):
        pairs += [(f"{side}.{name}", f"{side}.{name}") for name in ("conv_in", "conv_out")]
        pairs.append((f"{side}.conv_norm_out", f"{side}.norm_out"))
        for block in range(blocks):
            name = f"{side}.{direction}_blocks.{block}"
            original = f"{side}.{direction}.{block if side == 'encoder' else blocks - 1 - block}"
            for layer in range(count):
                pairs += [
                    (f"{name}.resnets.{layer}.conv_shortcut", f"{original}.block.{layer}.nin_shortcut"),
                    (f"{name}.resnets.{layer}", f"{original}.block.{layer}"),
                ]
            pairs.append((f"{name}.{direction}samplers.0.conv", f"{original}.{direction}sample.conv"))
        for layer in range(2):
            pairs.append((f"{side}.mid_block.resnets.{layer}", f"{side}.mid.block_{layer + 1}"))
        name, original = f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"
        pairs += [(f"{name}.{key}", f"{original}.{original_key}") for key, original_key in VAE_ATTENTION_NAMES.items()]
    return pairs


def is_open_clip(model: StableDiffusion) -> bool:
    """Whether the text encoder is the OpenCLIP ViT-H of Stable Diffusion 2, the only one that is 1024 wide."""
    return model.clip_l.config.hidden_size >= OPEN_CLIP_WIDTH


def to_open_clip(text_encoder: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the layers of a diffusers model, which omits OpenCLIP's last layer, as Stable Diffusion 2 does not use it."""
    tensors = {
        "token_embedding.weight": text_encoder["embeddings.token_embedding.weight"],
        "positional_embedding": text_encoder["embeddings.position_embedding.weight"],
        "ln_final.weight": text_encoder["final_layer_norm.weight"],
        "ln_final.bias": text_encoder["final_layer_norm.bias"],
    }
    count = 1 + max(int(key.split(".")[2]) for key in text_encoder if key.startswith("encoder.layers."))
    for number in range(count):
        layer, original = f"encoder.layers.{number}", f"transformer.resblocks.{number}"
        for kind in ("weight", "bias"):
            for name, original_name in OPEN_CLIP_BLOCK_NAMES.items():
                tensors[f"{original}.{original_name}.{kind}"] = text_encoder[f"{layer}.{name}.{kind}"]
            tensors[f"{original}.attn.in_proj_{kind}"] = torch.cat(
                [text_encoder[f"{layer}.self_attn.{n}_proj.{kind}"] for n in "qkv"]
            )
    return {OPEN_CLIP_PREFIX + key: weight for key, weight in tensors.items()}
