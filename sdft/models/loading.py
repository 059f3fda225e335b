"""Where a model comes from: a folder, the hub, the package, or a configuration without weights."""

from inspect import isclass, signature
from pathlib import Path

import torch

from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.safetensors_check import check_model_folder, check_no_custom_code
from sdft.models.stable_diffusion import PREDICTION_TYPES, StableDiffusion, compute_alphas_cumprod

WEIGHT_SOURCES = ("pretrained", "random")


def load_stable_diffusion(
    name: str,
    architecture: str | None = None,
    weights: str = "pretrained",
    revision: str | None = None,
    variant: str | None = None,
    prediction_type: str | None = None,
    zero_terminal_snr: bool = False,
    prompt_chunks: int = 1,
) -> StableDiffusion:
    """An embedded model, a local folder or a hub id in the diffusers layout, in fp32.

    `weights=random` builds the same networks without weights, from the configurations in `name` when it is a folder,
    else from those of `architecture` that this package carries: for tests and benchmarks, offline.
    """
    if weights not in WEIGHT_SOURCES:
        raise ValueError(f"model.weights={weights}: choose one of {', '.join(WEIGHT_SOURCES)}")
    if prompt_chunks < 1:
        raise ValueError(f"prompt_chunks={prompt_chunks}: choose 1 or more; each holds 75 tokens of a prompt")
    if prediction_type not in (None, *PREDICTION_TYPES):
        raise ValueError(f"model.prediction_type={prediction_type}: choose one of {', '.join(PREDICTION_TYPES)}")
    embedded = {index.parent.name: index.parent for index in ASSETS_FOLDER.glob("*/model_index.json")}
    place = str(embedded.get(name, name))
    if weights == "pretrained":
        model = load_pretrained(place, revision, variant)
    else:
        model = build_untrained(find_configs(place, architecture))
    model.name, model.prompt_chunks = f"sdft/assets/{name}" if name in embedded else name, prompt_chunks
    if prediction_type is not None or zero_terminal_snr:
        model.scheduler = change_prediction_type(
            model.scheduler, prediction_type or model.prediction_type, zero_terminal_snr
        )
        model.alphas_cumprod = compute_alphas_cumprod(model.scheduler.config)
    return model


def change_prediction_type(scheduler, prediction_type: str, zero_terminal_snr: bool):
    """The sampler with another prediction type; at zero terminal SNR (Lin et al., 2024) the last timestep is pure noise.

    Samplers that cannot start from pure noise, as PNDM, give way to DDIM.
    """
    from diffusers import DDIMScheduler

    kind, changes = type(scheduler), {"prediction_type": prediction_type}
    if zero_terminal_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        kind = kind if "rescale_betas_zero_snr" in signature(kind).parameters else DDIMScheduler
    return kind.from_config(scheduler.config, **changes)


def load_pretrained(name: str, revision: str | None = None, variant: str | None = None) -> StableDiffusion:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading files that are here; downloads keep theirs
    folder = Path(name).expanduser()
    if folder.is_dir():
        check_model_folder(folder)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"model.name={name}: no such folder")
    else:
        folder = download_model(name, revision, variant)
        check_model_folder(folder)
    fp32 = {"torch_dtype": torch.float32, "variant": variant, "local_files_only": True, "use_safetensors": True}
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **fp32)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **fp32)
    for network in (unet, vae):
        network.register_to_config(_name_or_path=None)  # or exports would tell this machine's folders
    return StableDiffusion(
        unet,
        vae,
        CLIPTextModel.from_pretrained(
            folder,
            subfolder="text_encoder",
            dtype=torch.float32,
            variant=variant,
            local_files_only=True,
            use_safetensors=True,
        ),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        load_scheduler(folder),
    )


def download_model(name: str, revision: str | None, variant: str | None) -> Path:
    """The folder that a hub id is, or will be, downloaded to."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()  # the one line below says it all
    try:
        return Path(DiffusionPipeline.download(name, revision=revision, variant=variant, use_safetensors=True))
    except (OSError, ValueError) as error:
        offline = "outgoing traffic has been disabled" in str(error) or "cached" in str(error)
        why = "the hub cannot be reached" if offline else str(error).strip().splitlines()[0]
        raise ValueError(
            f"model.name={name}: no such folder, and not to be had from the hub ({why}); "
            "give a folder, or model.weights=random to try without weights"
        ) from None


def load_scheduler(folder: Path):
    """The sampler named by scheduler_config.json."""
    import diffusers

    config = diffusers.DDPMScheduler.load_config(folder, subfolder="scheduler")
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isclass(kind) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ValueError(f"{folder / 'scheduler'}: {config.get('_class_name')} is no scheduler of diffusers")
    return kind.from_config(config)


def find_configs(name: str, architecture: str | None) -> Path:
    """The folder whose config.json files describe the networks."""
    if Path(name).expanduser().is_dir():
        check_no_custom_code(Path(name).expanduser())
        return Path(name).expanduser()
    if architecture is None or not (ASSETS_FOLDER / architecture).is_dir():
        known = sorted(p.parent.name for p in ASSETS_FOLDER.glob("*/unet"))
        raise ValueError(f"model.architecture={architecture}: model.weights=random knows {', '.join(known)}")
    return ASSETS_FOLDER / architecture


def build_untrained(folder: Path) -> StableDiffusion:
    """The networks that the configurations in `folder` describe, initialised from the global generator."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from sdft.models.clip_tokenizer import load_clip_tokenizer

    text_config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    return StableDiffusion(
        UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet")),
        AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae")),
        CLIPTextModel(text_config),
        load_clip_tokenizer(folder / "tokenizer"),
        load_scheduler(folder),
    )
