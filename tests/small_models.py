"""Configurations of small models with the structure of the published ones, for random weights."""

import json
import shutil
from pathlib import Path

from sdft.models.embedded import ASSETS_FOLDER

SMALL_UNET = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 8,
}
SMALL_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
SMALL_MODELS = {  # by the architecture that they are reduced from: changes to its configurations
    "sd21": {
        "unet/config.json": SMALL_UNET | {"cross_attention_dim": 32, "attention_head_dim": [2, 4]},
        "text_encoder/config.json": SMALL_TEXT,
    },
    "sdxl": {
        "unet/config.json": SMALL_UNET
        | {
            "cross_attention_dim": 32 + 48,
            "attention_head_dim": [2, 4],
            "transformer_layers_per_block": [1, 2],
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 40,
        },
        "text_encoder/config.json": SMALL_TEXT,
        "text_encoder_2/config.json": SMALL_TEXT | {"hidden_size": 48, "num_hidden_layers": 3, "projection_dim": 40},
    },
}
ONE_LEVEL_UNET = {  # few operations per step
    "block_out_channels": [16],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "transformer_layers_per_block": 1,
}
SMALL_VAE = {"block_out_channels": [8, 8, 16], "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 32}
VAE_TYPES = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}


def write_small_model(architecture: str, folder: Path) -> Path:
    """The configurations of a small model in `folder`."""
    return write_configs(architecture, folder, SMALL_MODELS[architecture] | {"vae/config.json": SMALL_VAE | VAE_TYPES})


def write_narrow_model(architecture: str, folder: Path, widths: dict, text: dict) -> Path:
    """The configurations of a model with the blocks of the published one: `widths` of UNet and VAE, `text` of the encoder."""
    changes = {"unet/config.json": widths | {"attention_head_dim": 8}, "vae/config.json": widths}
    return write_configs(architecture, folder, changes | {"text_encoder/config.json": text})


def write_configs(architecture: str, folder: Path, changes: dict[str, dict]) -> Path:
    """Configurations in the package with changed entries, by file, in `folder`."""
    shutil.copytree(ASSETS_FOLDER / architecture, folder)
    for name, entries in changes.items():
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    return folder
