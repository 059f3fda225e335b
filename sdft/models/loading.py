"""Load a model from a folder, the hub, the package, or a configuration with random weights."""

from inspect import isclass, signature
from pathlib import Path

import torch

from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.noise_process import PREDICTION_TYPES, VariancePreservingProcess
from sdft.models.safetensors_check import check_model_folder, check_no_custom_code
from sdft.models.stable_diffusion import StableDiffusion
from sdft.runs.files import get_identity
from sdft.runs.hashing import share_digests

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

    `weights=random` initialises the same networks randomly, from the configurations in `name` if it is a folder, else
    from the package's configurations of `architecture`: for offline tests and benchmarks.
    """
    if weights not in WEIGHT_SOURCES:
        raise ValueError(f"model.weights={weights}: choose one of {', '.join(WEIGHT_SOURCES)}")
    if prompt_chunks < 1:
        raise ValueError(f"prompt_chunks={prompt_chunks}: choose 1 or more; each chunk holds 75 tokens")
    if prediction_type not in (None, *PREDICTION_TYPES):
        raise ValueError(f"model.prediction_type={prediction_type}: choose one of {', '.join(PREDICTION_TYPES)}")
    embedded = {index.parent.name: index.parent for index in ASSETS_FOLDER.glob("*/model_index.json")}
    source = str(embedded.get(name, name))
    if weights == "pretrained":
        model = load_pretrained(source, revision, variant)
    else:
        model = build_untrained(find_configs(source, architecture))
    model.name, model.prompt_chunks = f"sdft/assets/{name}" if name in embedded else name, prompt_chunks
    if prediction_type is not None or zero_terminal_snr:
        model.scheduler = change_prediction_type(
            model.scheduler, prediction_type or model.prediction_type, zero_terminal_snr
        )
        model.noise_process = VariancePreservingProcess(model.scheduler.config)
    return model


def change_prediction_type(scheduler, prediction_type: str, zero_terminal_snr: bool):
    """The scheduler with another prediction type; with zero terminal SNR (Lin et al., 2024) the last timestep is pure noise.

    DDIM replaces schedulers that do not support zero terminal SNR, such as PNDM.
    """
    from diffusers import DDIMScheduler

    scheduler_class, changes = type(scheduler), {"prediction_type": prediction_type}
    if zero_terminal_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if "rescale_betas_zero_snr" not in signature(scheduler_class).parameters:
            scheduler_class = DDIMScheduler
    return scheduler_class.from_config(scheduler.config, **changes)


def load_pretrained(name: str, revision: str | None = None, variant: str | None = None) -> StableDiffusion:
    """The pretrained model of a folder or hub id, in fp32; `ValueError` if it is missing or unsafe."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading weights; downloads keep theirs
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
        network.register_to_config(_name_or_path=None)  # keep local paths out of exported configurations
    model = StableDiffusion(
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
    files = describe_weight_files(folder)
    for part in ("", "vae", *model.text_encoders):
        share_digests(model.get_submodule(part), (part, files))
    return model


def describe_weight_files(folder: Path) -> tuple[tuple[Path, tuple[int, ...]], ...]:
    """Path and identity of each weights file of a model folder."""
    return tuple((file.resolve(), get_identity(file)) for file in sorted(folder.rglob("*.safetensors")))


def download_model(name: str, revision: str | None, variant: str | None) -> Path:
    """Download a model from the hub, unless it is cached; return its folder."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()  # the error below suffices
    try:
        return Path(DiffusionPipeline.download(name, revision=revision, variant=variant, use_safetensors=True))
    except (OSError, ValueError) as error:
        is_offline = "outgoing traffic has been disabled" in str(error) or "cached" in str(error)
        reason = "the hub cannot be reached" if is_offline else str(error).strip().splitlines()[0]
        raise ValueError(
            f"model.name={name}: no such folder, and not available from the hub ({reason}); "
            "choose a folder, or model.weights=random for random weights"
        ) from None


def load_scheduler(folder: Path):
    """The scheduler of scheduler_config.json; `ValueError` if diffusers has no such class."""
    import diffusers

    config = diffusers.DDPMScheduler.load_config(folder, subfolder="scheduler")
    scheduler_class = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isclass(scheduler_class) and issubclass(scheduler_class, diffusers.SchedulerMixin)):
        raise ValueError(f"{folder / 'scheduler'}: {config.get('_class_name')} is not a scheduler of diffusers")
    return scheduler_class.from_config(config)


def find_configs(name: str, architecture: str | None) -> Path:
    """The folder with the config.json files of the networks."""
    if Path(name).expanduser().is_dir():
        check_no_custom_code(Path(name).expanduser())
        return Path(name).expanduser()
    if architecture is None or not (ASSETS_FOLDER / architecture).is_dir():
        supported = sorted(p.parent.name for p in ASSETS_FOLDER.glob("*/unet"))
        raise ValueError(
            f"model.architecture={architecture}: choose one of {', '.join(supported)} for model.weights=random"
        )
    return ASSETS_FOLDER / architecture


def build_untrained(folder: Path) -> StableDiffusion:
    """Networks with the configurations in `folder`, initialised from the global generator."""
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
