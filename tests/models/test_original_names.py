"""Every UNet layer has its name in the original layout, as in published checkpoints, and diffusers reads it back."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.original_names import map_unet_layers, to_original_name

PREFIX = "model.diffusion_model."
SDXL_KEYS = """time_embed.0.weight label_emb.0.0.weight
label_emb.0.2.bias input_blocks.0.0.weight input_blocks.1.0.in_layers.0.bias
input_blocks.3.0.op.weight input_blocks.4.0.skip_connection.weight input_blocks.4.1.proj_in.weight
input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight middle_block.1.transformer_blocks.9.attn2.to_out.0.bias
middle_block.2.out_layers.3.weight output_blocks.2.2.conv.weight output_blocks.5.1.transformer_blocks.1.norm3.weight
output_blocks.5.2.conv.bias output_blocks.8.0.emb_layers.1.weight out.0.weight out.2.bias"""


@pytest.mark.parametrize(("name", "count"), [("sd15", 686), ("sd21", 686), ("sdxl", 1680), ("tiny-sd", None)])
def test_unet_layers_have_their_original_names(name, count):
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(ASSETS_FOLDER / name / "unet"))
    weights, pairs = unet.state_dict(), tuple(map_unet_layers(unet))
    original = {PREFIX + to_original_name(key, pairs): weight for key, weight in weights.items()}
    assert len(original) == len(weights) == (count or len(weights))
    assert {key.split(".")[2] for key in original} <= {"input_blocks", "middle_block", "output_blocks"} | {
        "time_embed",
        "label_emb",
        "out",
    }
    if name == "sdxl":
        assert {PREFIX + key for key in SDXL_KEYS.split()} <= original.keys()
        assert sum(weight.numel() for weight in original.values()) == 2_567_463_684
    back = convert_ldm_unet_checkpoint(dict(original), unet.config)
    assert back.keys() == weights.keys() and all(back[key] is weights[key] for key in back)
