"""Recognise the family of a model folder from its configurations, before any weights are read.

Only Stable Diffusion 1 and 2, text to image, are supported; every other model is named in one line. Another family, such as SDXL,
becomes supported where its row here is removed.
"""

import re
from inspect import isclass, signature
from pathlib import Path

from sdft.runs.files import read_json

SUPPORTED = "Stable Diffusion 1 and 2 (text to image) are supported"
PIPELINES = (  # a pattern of the pipeline class in model_index.json, and what the model is; the first that matches
    ("StableDiffusionXL|SDXL", "Stable Diffusion XL"),
    ("StableDiffusion3", "Stable Diffusion 3"),
    ("Flux", "Flux"),
    ("Upscale", "an upscaler"),
    ("ImageVariation|UnCLIP", "an image variation model"),
    ("Depth2Img", "a depth-to-image model"),
    ("StableVideo|Video|Animate", "a video model"),
    (
        "Kandinsky|PixArt|Hunyuan|Sana|Wuerstchen|StableCascade|IFPipeline|AuraFlow|Lumina|Wan|Qwen",
        "a model of another family",
    ),
)
INPUT_CHANNELS = {  # of the UNet, beside the 4 of the latents
    9: "an inpainting model (mask and masked image)",
    8: "InstructPix2Pix or another model that is conditioned on an image",
    7: "an upscaler",
    5: "a depth-to-image model",
}
UNET_CONDITIONS = {  # a key of the UNet's config that must be empty, and what it means
    "addition_embed_type": "Stable Diffusion XL, or another model with additional conditions",
    "class_embed_type": "a model with class labels",
    "num_class_embeds": "a model with class labels",
    "encoder_hid_dim_type": "a model with image conditions",
    "time_cond_proj_dim": "a latent consistency model, whose UNet takes the guidance scale as an input",
}
NETWORK_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
TEXT_ENCODERS = ("clip_text_model", "clip")  # model types in config.json


def check_model_family(folder: Path) -> None:
    """`ValueError` for a folder with the configurations of another family, or with parts that do not fit each other."""
    if message := describe_mismatch(folder):
        raise ValueError(f"model.name={folder}: {message}")


def describe_mismatch(folder: Path) -> str | None:
    """What the model is instead of Stable Diffusion 1 or 2, or which parts do not fit each other; None if it is supported."""
    pipeline = str(read_config(folder, "model_index.json", required=False).get("_class_name"))
    if name := next((name for pattern, name in PIPELINES if re.search(pattern, pipeline)), None):
        return f"is {name} ({pipeline}); {SUPPORTED}"
    for part in ("transformer", "prior", "text_encoder_2", "text_encoder_3"):
        if (folder / part).is_dir():
            return f"is a model of another family (it has {part}/); {SUPPORTED}"
    unet, vae = read_config(folder, "unet/config.json"), read_config(folder, "vae/config.json")
    text_encoder = read_config(folder, "text_encoder/config.json")
    for part, config in (("unet", unet), ("vae", vae)):
        if config.get("_class_name", NETWORK_CLASSES[part]) != NETWORK_CLASSES[part]:
            return f"its {part} is {config['_class_name']}, not {NETWORK_CLASSES[part]}; {SUPPORTED}"
    if text_encoder.get("model_type") not in TEXT_ENCODERS:
        return f"its text_encoder is {text_encoder.get('model_type')}, not CLIP; {SUPPORTED}"
    for key, name in UNET_CONDITIONS.items():
        if unet.get(key) is not None:
            return f"is {name} ({key}={unet[key]}); {SUPPORTED}"
    return describe_shape_mismatch(unet, vae, text_encoder) or describe_scheduler_mismatch(folder)


def describe_shape_mismatch(unet: dict, vae: dict, text_encoder: dict) -> str | None:
    text_encoder = text_encoder.get("text_config") or text_encoder
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latents:
        name = INPUT_CHANNELS.get(channels, "another model")
        return f"is {name}: its UNet has {channels} input channels and its VAE {latents}; {SUPPORTED}"
    if unet.get("out_channels", 4) != latents:
        return f"its UNet has {unet['out_channels']} output channels and its VAE {latents}; {SUPPORTED}"
    widths, width = unet.get("cross_attention_dim", 1280), text_encoder.get("hidden_size", 512)
    widths = set(widths if isinstance(widths, list) else [widths])
    if widths != {width}:
        listed = ", ".join(map(str, sorted(widths, key=str)))
        return f"its UNet takes text embeddings of width {listed}, but its text encoder makes {width}; choose parts that fit"
    return None


def describe_scheduler_mismatch(folder: Path) -> str | None:
    import diffusers

    config = read_config(folder, "scheduler/scheduler_config.json")
    name, prediction_type = str(config.get("_class_name")), config.get("prediction_type", "epsilon")
    scheduler_class = getattr(diffusers, name, None)
    if not (isclass(scheduler_class) and issubclass(scheduler_class, diffusers.SchedulerMixin)):
        return f"scheduler: {name} is not a scheduler of diffusers"
    if name.startswith("FlowMatch") or "flow" in str(prediction_type) or config.get("use_flow_sigmas"):
        return f"is a flow matching model (scheduler {name}); {SUPPORTED}"
    if "trained_betas" not in signature(scheduler_class).parameters:
        return f"its scheduler {name} has no DDPM noise schedule; {SUPPORTED}"
    return None


def read_config(folder: Path, name: str, required: bool = True) -> dict:
    """A JSON object of the model folder; `ValueError` if it is invalid, or missing and required."""
    try:
        config = read_json(folder / name)
    except ValueError as error:
        raise ValueError(f"model.name={folder}: {name} {str(error).rpartition(': ')[2]}") from None
    if required and not (folder / name).is_file():
        raise ValueError(f"model.name={folder}: no {name}")
    return config
