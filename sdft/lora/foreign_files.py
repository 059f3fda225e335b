"""Name what a file is that cannot be read as a LoRA of a supported family, from its tensor names and shapes."""

import re

from torch import Tensor

ACCEPTED = "LoRA files for Stable Diffusion 1, 2 and XL are supported"
FOREIGN_FILES = (  # a pattern of tensor names, and what such a file is; the first that matches
    (r"lora_controlnet|lllite_|input_hint_block|controlnet_|zero_convs", "a ControlNet or Control-LoRA"),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter"),
    (r"motion_modules|temporal_transformer", "an AnimateDiff motion module or LoRA"),
    (r"(^|[._])(double_blocks|single_blocks|single_transformer_blocks)[._]", "for Flux"),
    (r"(^|[._])(joint_blocks|context_block)[._]|attn[._]add_[qkv]_proj", "for Stable Diffusion 3"),
    (
        r"^(lora_)?transformer[._]|^(diffusion_model\.|lora_unet_)?(blocks|layers|transformer_blocks)[._]\d",
        "for a diffusion transformer",
    ),
    (r"^lora_prior_|prior\.", "for a prior of another model"),
    (r"model\.layers\.\d+\.(self_attn|mlp)", "for a language model"),
    (r"string_to_param|emb_params|^clip_[lg]$|^<.*>$", "a textual inversion embedding"),
    (r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.", "a full checkpoint"),
    (r"^(encoder|decoder)\.(down|up|mid|conv_in|conv_out)|^(post_)?quant_conv", "a VAE"),
    (r"^(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|time_embed|conv_in)", "the weights of a UNet"),
    (r"^text_model\.", "the weights of a text encoder"),
)
WEIGHTS_ONLY = FOREIGN_FILES[-5:]  # the names of whole networks, which those of their LoRA extend


def describe_foreign_file(tensors: dict[str, Tensor], is_lora: bool) -> str | None:
    """What the file is, with the first name that shows it; None if it is not recognised. `is_lora`: it holds an adapter."""
    for row in FOREIGN_FILES:
        if is_lora and row in WEIGHTS_ONLY:
            continue
        if key := next((key for key in sorted(tensors) if re.search(row[0], key)), None):
            return f"is {row[1]} ({key}); {ACCEPTED}"
    if tensors and all("." not in key and tensor.ndim <= 2 for key, tensor in tensors.items()):
        return f"is a textual inversion embedding ({min(tensors)}); {ACCEPTED}"
    return None
