"""Stable Diffusion as three networks and four verbs: encode, tokenize, condition, predict (Rombach et al., 2022)."""

import copy
import math
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
        self.compute = torch.float32  # the precision of products; the training module may change it
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
    def tokens(self) -> int:
        """The longest prompt, with its start and end."""
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What a method may let learn."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(channels, h/f, w/f) for a square picture; `ValueError` when f, or diffusers' own 8, does not divide it."""
        unit = math.lcm(8, self.factor)
        if resolution < unit or resolution % unit:
            nearest = max(unit, round(resolution / unit) * unit)
            raise ValueError(f"resolution={resolution}: {self.name} takes multiples of {unit}, such as {nearest}")
        return self.vae.config.latent_channels, resolution // self.factor, resolution // self.factor

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        """Pictures -1..1 `[batch, 3, h, w]` and standard normal noise to scaled latents `[batch, 4, h/8, w/8]`, in fp32."""
        with torch.autocast(images.device.type, enabled=False):
            posterior = self.vae.encode(images.float()).latent_dist
            return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents `[batch, 4, h/8, w/8]` to pictures, about -1..1, `[batch, 3, h, w]`, in fp32."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.vae.decode(latents.float() / self.vae.config.scaling_factor).sample

    def tokenize(self, captions: list[str]) -> Tensor:
        """Token ids `[batch, tokens]`, padded and cut to what the text encoder takes."""
        return self.tokenizer(
            captions, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
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
    if prediction_type not in (None, *PREDICTIONS):
        raise ValueError(f"model.prediction_type={prediction_type}: choose one of {', '.join(PREDICTIONS)}")
    embedded = {index.parent.name: index.parent for index in FOLDER.glob("*/model_index.json")}
    place = str(embedded.get(name, name))
    if weights == "pretrained":
        model = pretrained(place, revision, variant)
    else:
        model = untrained(configurations(place, architecture))
    model.name = f"sdft/assets/{name}" if name in embedded else name
    if prediction_type is not None:
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
        shipped_scheduler(folder),
    )


def from_hub(name: str, revision: str | None, variant: str | None) -> Path:
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
