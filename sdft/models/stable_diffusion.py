"""Stable Diffusion as three networks and four verbs: encode, tokenize, condition, predict (Rombach et al., 2022)."""

import copy
import math

import torch
from torch import Tensor, nn

PREDICTIONS = ("epsilon", "v_prediction")


class StableDiffusion(nn.Module):
    """Everything is frozen and in evaluation mode on arrival; a method decides what learns.

    `scheduler` is the one the checkpoint ships: it is only ever copied, for sampling. Training reads `alphas_cumprod`.
    """

    def __init__(self, unet, vae, text_encoder, tokenizer, scheduler):
        super().__init__()
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.tokenizer, self.scheduler, self.name = tokenizer, scheduler, "the model"
        self.prompt_chunks = 1  # of the text encoder's length, in which a prompt is encoded
        self.register_buffer("alphas_cumprod", noise_levels(scheduler.config), persistent=False)
        self.vocabulary = len(tokenizer)  # without words that a method adds
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
    def prompt_tokens(self) -> int:
        """The longest prompt that is read whole, with one start and end."""
        return self.prompt_chunks * (self.tokens - 2) + 2

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What a method may let learn."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    @property
    def unit(self) -> int:
        """What the sides of a picture are multiples of: the autoencoder's factor and diffusers' own 8."""
        return math.lcm(8, self.factor)

    def latent_shape(self, resolution: int, word: str = "resolution") -> tuple[int, int, int]:
        """(channels, h/f, w/f) for a square picture; `ValueError` when `unit` does not divide its side."""
        unit = self.unit
        if resolution < unit or resolution % unit:
            nearest = max(unit, round(resolution / unit) * unit)
            raise ValueError(f"{word}={resolution}: {self.name} takes multiples of {unit}, such as {nearest}")
        return self.batch_shape(1, (resolution, resolution))[1:]

    def batch_shape(self, count: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Of the latents of `count` pictures of (width, height) pixels: `[count, 4, h/f, w/f]`."""
        width, height = size
        return count, self.vae.config.latent_channels, height // self.factor, width // self.factor

    @torch.no_grad()
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures -1..1 `[batch, 3, h, w]` to mean and standard deviation of their latents `[batch, 4, h/8, w/8]`, in fp32."""
        with torch.autocast(images.device.type, enabled=False):
            posterior = self.vae.encode(images.float()).latent_dist
            return posterior.mean, posterior.std

    def latents(self, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """Scaled latents `[batch, 4, h/8, w/8]` from their moments and standard normal noise."""
        return (mean + std * noise) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents `[batch, 4, h/8, w/8]` to pictures, about -1..1, `[batch, 3, h, w]`, in fp32."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.vae.decode(latents.float() / self.vae.config.scaling_factor).sample

    def tokenize(self, captions: list[str]) -> Tensor:
        """Token ids `[batch, prompt_chunks * tokens]`, padded and cut to what the text encoder takes, window by window."""
        one = {"padding": "max_length", "max_length": self.tokens, "truncation": True, "return_tensors": "pt"}
        if self.prompt_chunks == 1:
            return self.tokenizer(self.spelled(captions), **one).input_ids
        inner, rows = self.tokens - 2, []
        for ids in self.tokenizer(self.spelled(captions), add_special_tokens=False, verbose=False).input_ids:
            pieces = [ids[start : start + inner] for start in range(0, inner * self.prompt_chunks, inner)]
            start, end, pad = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
            rows.append([t for p in pieces for t in [start, *p, end, *[pad] * (inner - len(p))]])
        return torch.tensor(rows)

    def spelled(self, captions: list[str]) -> list[str]:
        """A word of several learned vectors as all of its tokens, as pipelines of diffusers do it."""
        if len(self.tokenizer) == self.vocabulary:
            return captions
        from diffusers.loaders import TextualInversionLoaderMixin

        return TextualInversionLoaderMixin().maybe_convert_prompt(captions, self.tokenizer)

    def condition(self, ids: Tensor) -> Tensor:
        """Token ids `[batch, prompt_chunks * tokens]` to what the UNet attends to `[batch, prompt_chunks * tokens, width]`."""
        return self.text_encoder(ids.reshape(-1, ids.shape[1] // self.prompt_chunks))[0].reshape(*ids.shape, -1)

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """The UNet's output `[batch, 4, h, w]`: noise or velocity, as `prediction_type` says."""
        dtype = next(self.unet.parameters()).dtype  # as `unet.dtype`, which looks at every module first
        return self.unet(noisy.to(dtype), timesteps, context.to(dtype)).sample

    def image_and_noise(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """What an `output` of the UNet says of `noisy`: clean latents and noise, `[batch, 4, h, w]` each."""
        alpha = self.alphas_cumprod[timesteps][:, None, None, None]
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        if self.prediction_type == "epsilon":
            return (noisy - sigma * output) / signal, output
        return signal * noisy - sigma * output, signal * output + sigma * noisy

    @torch.no_grad()
    def keep_unconditional(self) -> None:
        """Keep as `unconditional` `[1, tokens, width]` what the UNet attends to without a caption, for guidance in training."""
        ids = self.tokenize([""]).to(self.text_encoder.device)
        self.register_buffer("unconditional", self.condition(ids), persistent=False)

    def pipeline(self, kind=None, **parts):
        """diffusers' pipeline of a `kind`, `StableDiffusionPipeline` by default, over the same networks and further `parts`, with
        a fresh copy of the shipped scheduler."""
        from diffusers import StableDiffusionPipeline

        return (kind or StableDiffusionPipeline)(
            unet=self.unet,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            scheduler=copy.deepcopy(self.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **parts,
        )


def noise_levels(config) -> Tensor:
    """Cumulative product of 1 - beta `[timesteps]`, as DDPM training uses it, whatever sampler the checkpoint ships."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(config).alphas_cumprod.clone()
