"""Stable Diffusion (Rombach et al., 2022): three networks and the operations encode, tokenize, condition, predict."""

import copy
import math

import torch
from torch import Tensor, nn

from sdft.models.noise_process import VariancePreservingProcess
from sdft.models.prompt_tokenizer import PromptTokenizer

COMPONENT_NAMES = {"unet": "unet", "clip_l": "text_encoder"}  # diffusers' names of the parts


class StableDiffusion(nn.Module):
    """Initially all parameters are frozen and in eval mode; a method chooses the trainable ones.

    `scheduler` is the checkpoint's own; sampling copies it, and training uses the `noise_process` of its configuration.
    """

    def __init__(self, unet, vae, text_encoder, tokenizer, scheduler):
        super().__init__()
        self.unet, self.vae, self.clip_l = unet, vae, text_encoder
        self.tokenizer, self.scheduler, self.name = tokenizer, scheduler, "the model"
        self.prompt_chunks = 1  # chunks of the text encoder's length per prompt
        self.noise_process = VariancePreservingProcess(scheduler.config)
        self.base_vocabulary_size = len(tokenizer)  # without placeholder tokens that a method adds
        self.compute_dtype = torch.float32  # may be changed by the training module
        self.requires_grad_(False).eval()

    @property
    def prediction_type(self) -> str:
        return self.noise_process.prediction_type

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def chunk_length(self) -> int:
        """Tokens of the longest prompt in one chunk, including start and end."""
        return min(self.tokenizer.model_max_length, self.clip_l.config.max_position_embeddings)

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt that is not truncated, including one start and end."""
        return self.prompt_chunks * (self.chunk_length - 2) + 2

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """The parts that encode captions."""
        return {"clip_l": self.clip_l}

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The networks that a method may train, by their names in options, checkpoints and metrics."""
        return {"unet": self.unet, **self.text_encoders}

    @property
    def components(self) -> dict[str, nn.Module]:
        """The parts by their names in diffusers' pipelines and LoRA files."""
        return {COMPONENT_NAMES[part]: network for part, network in self.parts.items()}

    @property
    def size_multiple(self) -> int:
        """Image sides are multiples of this: the VAE's factor and 8, which diffusers requires."""
        return math.lcm(8, self.vae_scale_factor)

    def latent_shape(self, resolution: int, option: str = "resolution") -> tuple[int, int, int]:
        """(channels, h/f, w/f) of a square image; `ValueError` naming `option` if `size_multiple` does not divide its side."""
        size_multiple = self.size_multiple
        if resolution < size_multiple or resolution % size_multiple:
            nearest = max(size_multiple, round(resolution / size_multiple) * size_multiple)
            raise ValueError(
                f"{option}={resolution}: {self.name} requires multiples of {size_multiple}, such as {nearest}"
            )
        return self.batch_shape(1, (resolution, resolution))[1:]

    def batch_shape(self, count: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Shape `[count, 4, h/f, w/f]` of the latents of `count` images of (width, height) pixels."""
        width, height = size
        return count, self.vae.config.latent_channels, height // self.vae_scale_factor, width // self.vae_scale_factor

    @torch.no_grad()
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `[batch, 4, h/8, w/8]` of the latents of images in -1..1 `[batch, 3, h, w]`, in fp32."""
        with torch.autocast(images.device.type, enabled=False):
            posterior = self.vae.encode(images.float()).latent_dist
            return posterior.mean, posterior.std

    def latents(self, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """Scaled latents `[batch, 4, h/8, w/8]` from their moments and standard normal noise."""
        return (mean + std * noise) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images `[batch, 3, h, w]`, roughly in -1..1, of scaled latents `[batch, 4, h/8, w/8]`, in fp32."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.vae.decode(latents.float() / self.vae.config.scaling_factor).sample

    @property
    def prompt_tokenizer(self) -> PromptTokenizer:
        """Turns prompts to token ids without the networks."""
        return PromptTokenizer(self.tokenizer, self.chunk_length, self.prompt_chunks, self.base_vocabulary_size)

    def tokenize(self, captions: list[str]) -> Tensor:
        """Token ids `[batch, prompt_chunks * tokens]`, padded or truncated to the text encoder's length per chunk."""
        return self.prompt_tokenizer(captions)

    def condition(self, ids: Tensor) -> Tensor:
        """Context `[batch, prompt_chunks * tokens, width]` for the UNet, from token ids `[batch, prompt_chunks * tokens]`."""
        return self.clip_l(ids.reshape(-1, ids.shape[1] // self.prompt_chunks))[0].reshape(*ids.shape, -1)

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """The UNet's output `[batch, 4, h, w]`: noise or velocity, depending on `prediction_type`."""
        dtype = next(self.unet.parameters()).dtype  # faster than `unet.dtype`, which visits every module
        return self.unet(noisy.to(dtype), timesteps, context.to(dtype)).sample

    @torch.no_grad()
    def cache_unconditional_embedding(self) -> None:
        """Store the context of the empty caption as `unconditional_embedding` `[1, tokens, width]`, for guidance in training."""
        ids = self.tokenize([""]).to(self.clip_l.device)
        self.register_buffer("unconditional_embedding", self.condition(ids), persistent=False)

    def append_unconditional(self, context: Tensor) -> Tensor:
        """`context` followed by as many contexts of the empty caption, `[2 * batch, tokens, width]`, for guidance."""
        return torch.cat([context, self.unconditional_embedding.to(context).expand_as(context)])

    def build_pipeline(self, pipeline_class=None, **parts):
        """A diffusers pipeline (default `StableDiffusionPipeline`) of these networks, a copy of the scheduler, and `parts`."""
        from diffusers import StableDiffusionPipeline

        return (pipeline_class or StableDiffusionPipeline)(
            **self.components,
            vae=self.vae,
            tokenizer=self.tokenizer,
            scheduler=copy.deepcopy(self.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **parts,
        )
