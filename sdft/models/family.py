"""Recognise the family of a model folder from its configurations, before any weights are read.

Stable Diffusion 1, 2 and XL, text to image, are supported; every other model is named in one line.
"""

import re
from inspect import isclass, signature
from pathlib import Path

from sdft.models.diffusion_model import DiffusionModel
from sdft.models.stable_diffusion import StableDiffusion
from sdft.models.stable_diffusion_xl import StableDiffusionXL
from sdft.runs.files import read_json

SUPPORTED = "Stable Diffusion 1, 2 and XL (text to image) are supported"
PIPELINES = (  # a pattern of the pipeline class in model_index.json, and what the model is; the first that matches
    ("StableDiffusionXLImg2Img", "the refiner of Stable Diffusion XL"),
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
    "addition_embed_type": "a model with additional conditions",
    "class_embed_type": "a model with class labels",
    "num_class_embeds": "a model with class labels",
    "encoder_hid_dim_type": "a model with image conditions",
    "time_cond_proj_dim": "a latent consistency model, whose UNet takes the guidance scale as an input",
}
TEXT_ENCODERS = ("clip_text_model", "clip")  # model types in config.json
GEOMETRY_INPUTS = 6  # numbers that describe size and crop


def check_model_family(folder: Path) -> None:
    """`ValueError` for a folder with the configurations of another family, or with parts that do not fit each other."""
    if message := describe_mismatch(folder):
        raise ValueError(f"model.name={folder}: {message}")


def describe_mismatch(folder: Path) -> str | None:
    """What the model is instead of a supported one, or which parts do not fit each other; None if it is supported."""
    pipeline = str(read_config(folder, "model_index.json", required=False).get("_class_name"))
    if name := next((name for pattern, name in PIPELINES if re.search(pattern, pipeline)), None):
        return f"is {name} ({pipeline}); {SUPPORTED}"
    for part in ("transformer", "prior"):
        if (folder / part).is_dir():
            return f"is a model of another family (it has {part}/); {SUPPORTED}"
    model_class = find_model_class(folder)
    for part in sorted(path.name for path in folder.glob("text_encoder_*") if path.is_dir()):
        if part not in model_class.network_classes:
            return f"is a model of another family (it has {part}/); {SUPPORTED}"
    configs = {component: read_config(folder, f"{component}/config.json") for component in model_class.network_classes}
    for component, class_name in model_class.network_classes.items():
        config = configs[component]
        if component.startswith("text_encoder"):
            if config.get("model_type") not in TEXT_ENCODERS:
                return f"its {component} is {config.get('model_type')}, not CLIP; {SUPPORTED}"
        elif config.get("_class_name", class_name) != class_name:
            return f"its {component} is {config['_class_name']}, not {class_name}; {SUPPORTED}"
    unet, vae = configs["unet"], configs["vae"]
    for key, name in UNET_CONDITIONS.items():
        if unet.get(key) is not None and not (model_class is StableDiffusionXL and key == "addition_embed_type"):
            return f"is {name} ({key}={unet[key]}); {SUPPORTED}"
    text_encoders = [config.get("text_config") or config for name, config in configs.items() if name.startswith("text")]
    return (
        describe_channel_mismatch(unet, vae)
        or describe_width_mismatch(unet, text_encoders)
        or describe_scheduler_mismatch(folder)
    )


def find_model_class(folder: Path) -> type[DiffusionModel]:
    """The class of the family: that with geometry inputs is Stable Diffusion XL."""
    is_xl = read_config(folder, "unet/config.json").get("addition_embed_type") == "text_time"
    return StableDiffusionXL if is_xl else StableDiffusion


def get_model_class(pipeline: str | None) -> type[DiffusionModel]:
    """The class of the family with a pipeline of diffusers; by default, Stable Diffusion 1 and 2."""
    classes = (StableDiffusion, StableDiffusionXL)
    return next((cls for cls in classes if cls.pipeline_names["text_to_image"] == pipeline), StableDiffusion)


def describe_channel_mismatch(unet: dict, vae: dict) -> str | None:
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latents:
        name = INPUT_CHANNELS.get(channels, "another model")
        return f"is {name}: its UNet has {channels} input channels and its VAE {latents}; {SUPPORTED}"
    if unet.get("out_channels", 4) != latents:
        return f"its UNet has {unet['out_channels']} output channels and its VAE {latents}; {SUPPORTED}"
    return None


def describe_width_mismatch(unet: dict, text_encoders: list[dict]) -> str | None:
    """Whether the text encoders make embeddings of other widths than the UNet takes."""
    widths, width = unet.get("cross_attention_dim", 1280), sum(c.get("hidden_size", 512) for c in text_encoders)
    widths = set(widths if isinstance(widths, list) else [widths])
    if widths != {width}:
        listed = ", ".join(map(str, sorted(widths, key=str)))
        return f"its UNet takes text embeddings of width {listed}, but its text encoders make {width}; choose parts that fit"
    inputs = unet.get("projection_class_embeddings_input_dim")
    if inputs is not None:
        geometry, pooled = unet.get("addition_time_embed_dim", 0), text_encoders[-1].get("projection_dim", 512)
        if inputs != GEOMETRY_INPUTS * geometry + pooled:
            return (
                f"its UNet takes {inputs} numbers beside the text embeddings, but {GEOMETRY_INPUTS} × {geometry} describe "
                f"the image and {pooled} the caption, as in no base model; {SUPPORTED}"
            )
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
