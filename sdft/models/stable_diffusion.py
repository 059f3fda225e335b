"""Stable Diffusion as three networks and four verbs: encode, tokenize, condition, predict (Rombach et al., 2022)."""

import copy
import math

import torch
from torch import Tensor, nn

PREDICTION_TYPES = ("epsilon", "v_prediction")


class StableDiffusion(nn.Module):
    """Everything is frozen and in evaluation mode on arrival; a method decides what learns.

    `scheduler` is the one the checkpoint ships: it is only ever copied, for sampling. Training reads `alphas_cumprod`.
    """

    def __init__(self, unet, vae, text_encoder, tokenizer, scheduler):
        super().__init__()
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.tokenizer, self.scheduler, self.name = tokenizer, scheduler, "the model"
        self.prompt_chunks = 1  # of the text encoder's length, in which a prompt is encoded
        self.register_buffer("alphas_cumprod", compute_alphas_cumprod(scheduler.config), persistent=False)
        self.base_vocabulary_size = len(tokenizer)  # without words that a method adds
        self.compute_dtype = torch.float32  # the precision of products; the training module may change it
        self.requires_grad_(False).eval()
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"model.prediction_type={self.prediction_type}: choose one of {', '.join(PREDICTION_TYPES)}"
            )

    @property
    def prediction_type(self) -> str:
        return self.scheduler.config.get("prediction_type", "epsilon")

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, on a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def chunk_length(self) -> int:
        """The longest prompt, with its start and end."""
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that is read whole, with one start and end."""
        return self.prompt_chunks * (self.chunk_length - 2) + 2

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What a method may let learn."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    @property
    def size_multiple(self) -> int:
        """What the sides of a picture are multiples of: the autoencoder's factor and diffusers' own 8."""
        return math.lcm(8, self.vae_scale_factor)

    def latent_shape(self, resolution: int, word: str = "resolution") -> tuple[int, int, int]:
        """(channels, h/f, w/f) for a square picture; `ValueError` when `size_multiple` does not divide its side."""
        size_multiple = self.size_multiple
        if resolution < size_multiple or resolution % size_multiple:
            nearest = max(size_multiple, round(resolution / size_multiple) * size_multiple)
            raise ValueError(f"{word}={resolution}: {self.name} takes multiples of {size_multiple}, such as {nearest}")
        return self.batch_shape(1, (resolution, resolution))[1:]

    def batch_shape(self, count: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Of the latents of `count` pictures of (width, height) pixels: `[count, 4, h/f, w/f]`."""
        width, height = size
        return count, self.vae.config.latent_channels, height // self.vae_scale_factor, width // self.vae_scale_factor

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
        one = {"padding": "max_length", "max_length": self.chunk_length, "truncation": True, "return_tensors": "pt"}
        if self.prompt_chunks == 1:
            return self.tokenizer(self.expand_placeholder_tokens(captions), **one).input_ids
        inner, rows = self.chunk_length - 2, []
        for ids in self.tokenizer(
            self.expand_placeholder_tokens(captions), add_special_tokens=False, verbose=False
        ).input_ids:
            pieces = [ids[start : start + inner] for start in range(0, inner * self.prompt_chunks, inner)]
            start, end, pad = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
            rows.append([t for p in pieces for t in [start, *p, end, *[pad] * (inner - len(p))]])
        return torch.tensor(rows)

    def expand_placeholder_tokens(self, captions: list[str]) -> list[str]:
        """A word of several learned vectors as all of its tokens, as pipelines of diffusers do it."""
        if len(self.tokenizer) == self.base_vocabulary_size:
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

    def predict_latents_and_noise(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """What an `output` of the UNet says of `noisy`: clean latents and noise, `[batch, 4, h, w]` each."""
        alpha = self.alphas_cumprod[timesteps][:, None, None, None]
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        if self.prediction_type == "epsilon":
            return (noisy - sigma * output) / signal, output
        return signal * noisy - sigma * output, signal * output + sigma * noisy

    @torch.no_grad()
    def cache_unconditional_embedding(self) -> None:
        """Keep as `unconditional_embedding` `[1, tokens, width]` what the UNet attends to without a caption, for guidance in training."""
        ids = self.tokenize([""]).to(self.text_encoder.device)
        self.register_buffer("unconditional_embedding", self.condition(ids), persistent=False)

    def build_pipeline(self, kind=None, **parts):
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


def compute_alphas_cumprod(config) -> Tensor:
    """Cumulative product of 1 - beta `[timesteps]`, as DDPM training uses it, whatever sampler the checkpoint ships."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(config).alphas_cumprod.clone()
