"""Stable Diffusion as three networks and four verbs: encode, tokenize, condition, predict (Rombach et al., 2022)."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from sdft.assets import FOLDER

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
WEIGHTS = ("pretrained", "random")
PREDICTIONS = ("epsilon", "v_prediction")


class StableDiffusion(nn.Module):
    """Everything is frozen and in evaluation mode on arrival; a method decides what learns.

    `scheduler` is the one the checkpoint ships: it is only ever copied, for sampling. Training reads `alphas_cumprod`.
    """

    def __init__(self, unet, vae, text_encoder, tokenizer, scheduler):
        super().__init__()
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.tokenizer, self.scheduler, self.name = tokenizer, scheduler, "the model"
        self.register_buffer("alphas_cumprod", noise_levels(scheduler.config), persistent=False)
        self.requires_grad_(False).eval()
        if self.prediction_type not in PREDICTIONS:
            raise ValueError(f"model.prediction_type={self.prediction_type}: choose one of {', '.join(PREDICTIONS)}")

    @property
    def prediction_type(self) -> str:
        return self.scheduler.config.get("prediction_type", "epsilon")

    @property
    def factor(self) -> int:
        """Pixels per latent, on a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What a method may let learn."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(channels, h/f, w/f) for a square picture; `ValueError` when f does not divide it."""
        if resolution < self.factor or resolution % self.factor:
            nearest = max(self.factor, round(resolution / self.factor) * self.factor)
            raise ValueError(
                f"resolution={resolution}: {self.name} takes multiples of {self.factor}, such as {nearest}"
            )
        return self.vae.config.latent_channels, resolution // self.factor, resolution // self.factor

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        """Pictures -1..1 `[batch, 3, h, w]` and standard normal noise to scaled latents `[batch, 4, h/8, w/8]`, fp32."""
        posterior = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        latents = posterior.mean.float() + posterior.std.float() * noise
        return latents * self.vae.config.scaling_factor

    def tokenize(self, captions: list[str]) -> Tensor:
        """Token ids `[batch, length]`, padded and cut to what the text encoder takes."""
        length = self.tokenizer.model_max_length
        return self.tokenizer(
            captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids

    def condition(self, ids: Tensor) -> Tensor:
        """Token ids `[batch, length]` to what the UNet attends to `[batch, length, width]`."""
        return self.text_encoder(ids)[0]

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """The UNet's output `[batch, 4, h, w]`: noise or velocity, as `prediction_type` says."""
        return self.unet(noisy.to(self.unet.dtype), timesteps, context.to(self.unet.dtype)).sample

    def pipeline(self):
        """A `StableDiffusionPipeline` over the same networks, with a fresh copy of the shipped scheduler."""
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            unet=self.unet,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            scheduler=copy.deepcopy(self.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def noise_levels(config) -> Tensor:
    """Cumulative product of 1 - beta `[timesteps]`, as DDPM training uses it, whatever sampler the checkpoint ships."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(config).alphas_cumprod.clone()


def load(
    name: str,
    architecture: str | None = None,
    weights: str = "pretrained",
    revision: str | None = None,
    variant: str | None = None,
    prediction_type: str | None = None,
) -> StableDiffusion:
    """An embedded model, a local folder or a hub id in the diffusers layout, in fp32.

    `weights=random` builds the same networks without weights, from the configurations in `name` when it is a folder,
    else from those of `architecture` that this package carries: for tests and benchmarks, offline.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"model.weights={weights}: choose one of {', '.join(WEIGHTS)}")
    embedded = FOLDER / name
    place = str(embedded) if (embedded / "model_index.json").is_file() else name
    if weights == "pretrained":
        model = pretrained(place, revision, variant)
    else:
        model = untrained(configurations(place, architecture))
    model.name = f"sdft/assets/{name}" if place != name else name
    if prediction_type is not None:
        if prediction_type not in PREDICTIONS:
            raise ValueError(f"model.prediction_type={prediction_type}: choose one of {', '.join(PREDICTIONS)}")
        model.scheduler.register_to_config(prediction_type=prediction_type)
    return model


def pretrained(name: str, revision: str | None = None, variant: str | None = None) -> StableDiffusion:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading files that are here; downloads keep theirs
    folder = Path(name).expanduser()
    if folder.is_dir():
        check_layout(folder)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"model.name={name}: no such folder")
    else:
        folder = from_hub(name, revision, variant)
    fp32 = {"torch_dtype": torch.float32, "variant": variant, "local_files_only": True, "use_safetensors": True}
    return StableDiffusion(
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **fp32),
        AutoencoderKL.from_pretrained(folder, subfolder="vae", **fp32),
        CLIPTextModel.from_pretrained(
            folder,
            subfolder="text_encoder",
            dtype=torch.float32,
            variant=variant,
            local_files_only=True,
            use_safetensors=True,
        ),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        shipped_scheduler(folder),
    )


def from_hub(name: str, revision: str | None, variant: str | None) -> Path:
    """The folder that a hub id is, or will be, downloaded to."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()  # the one line below says it all
    try:
        return Path(DiffusionPipeline.download(name, revision=revision, variant=variant, safety_checker=None))
    except (OSError, ValueError) as error:
        offline = "outgoing traffic has been disabled" in str(error) or "cached" in str(error)
        why = "the hub cannot be reached" if offline else str(error).strip().splitlines()[0]
        raise ValueError(
            f"model.name={name}: no such folder, and not to be had from the hub ({why}); "
            "give a folder, or model.weights=random to try without weights"
        ) from None


def check_layout(folder: Path) -> None:
    for part in PARTS:
        if not (folder / part).is_dir():
            raise ValueError(f"model.name={folder}: no {part}/ in it; a model folder holds {', '.join(PARTS)}")


def shipped_scheduler(folder: Path):
    """The sampler named by scheduler_config.json."""
    import diffusers

    config = diffusers.DDPMScheduler.load_config(folder, subfolder="scheduler")
    return getattr(diffusers, config["_class_name"]).from_config(config)


def configurations(name: str, architecture: str | None) -> Path:
    """The folder whose config.json files describe the networks."""
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if architecture is None or not (FOLDER / architecture).is_dir():
        known = sorted(p.parent.name for p in FOLDER.glob("*/unet"))
        raise ValueError(f"model.architecture={architecture}: model.weights=random knows {', '.join(known)}")
    return FOLDER / architecture


def untrained(folder: Path) -> StableDiffusion:
    """The networks that the configurations in `folder` describe, initialised from the global generator."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from sdft.tokenizer import clip_tokenizer

    text_config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    return StableDiffusion(
        UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet")),
        AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae")),
        CLIPTextModel(text_config),
        clip_tokenizer(folder / "tokenizer"),
        shipped_scheduler(folder),
    )
