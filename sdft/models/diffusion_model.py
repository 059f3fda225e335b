"""A latent diffusion model (Rombach et al., 2022): its networks and the operations encode, tokenize, condition, predict.

Each family is a subclass, which says what its text encoders return and what its network is conditioned on.
"""

import copy
import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from sdft.models.conditioning import Conditioning
from sdft.models.decoding import decode_latents
from sdft.models.noise_process import VariancePreservingProcess
from sdft.models.prompt_tokenizer import PromptTokenizer

COPIED_ATTRIBUTES = (  # to other networks
    "name", "prompt_chunks", "clip_skip", "base_vocabulary_size", "empty_caption", "checkpoint_prediction_type",
)  # fmt: skip


class DiffusionModel(nn.Module):
    """Initially all parameters are frozen and in eval mode; a method chooses the trainable ones.

    `networks` are the trainable parts and the `vae` by name, `tokenizers` one per text encoder. `scheduler` is the
    checkpoint's own; sampling copies it, and training uses the `noise_process` of its configuration.
    """

    family: ClassVar[str]  # name in messages
    component_names: ClassVar[dict[str, str]]  # diffusers' names of the parts; the denoising network comes first
    network_classes: ClassVar[dict[str, str]]  # diffusers' and transformers' classes of the networks, by component
    tokenizer_names: ClassVar[tuple[str, ...]] = ("tokenizer",)  # diffusers' names
    pipeline_names: ClassVar[dict[str, str]]  # diffusers' pipeline class by task
    default_clip_skip: ClassVar[int] = 1
    empty_caption: str | None = None  # "zeros" or "encoded"; None: the family leaves no choice
    hub_tag: ClassVar[str] = "stable-diffusion"
    new_token_code: ClassVar[str] = ""  # code after which a pipeline `pipe` of diffusers reads new tokens rightly
    text_outputs: ClassVar[tuple[str, ...]] = ("context",)  # of the text encoders, see `encode_text`
    image_inputs: ClassVar[tuple[str, ...]] = ()  # entries of a batch that the network takes beside the text
    trains_text_encoders_by_default: ClassVar[bool] = True  # with LoRA

    def __init__(self, networks: dict[str, nn.Module], tokenizers: list, scheduler):
        super().__init__()
        for name, network in networks.items():
            self.add_module(name, network)
        self.tokenizers, self.scheduler, self.name = tokenizers, scheduler, "the model"
        self.prompt_chunks = 1  # chunks of the text encoder's length per prompt
        self.noise_process = VariancePreservingProcess(scheduler.config)
        self.checkpoint_prediction_type: str | None = None  # what the weights were trained for; None: random weights
        self.base_vocabulary_size = len(self.tokenizer)  # without placeholder tokens that a method adds
        self.clip_skip = self.default_clip_skip  # the context is the hidden state of that layer, counted from the last
        self.compute_dtype = torch.float32  # of the networks' inputs and weights, see `set_precision`
        self.requires_grad_(False).eval()

    @property
    def tokenizer(self):
        """The tokenizer of the first text encoder; all have the same vocabulary."""
        return self.tokenizers[0]

    @property
    def prediction_type(self) -> str:
        return self.noise_process.prediction_type

    @property
    def checkpoint_resolution(self) -> int | None:
        """Pixels along a side of the images that the network was trained on, if its configuration says so."""
        size = next(iter(self.parts.values())).config.get("sample_size")
        return size * self.vae_scale_factor if isinstance(size, int) else None

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def chunk_length(self) -> int:
        """Tokens of the longest prompt in one chunk, including start and end."""
        limits = [network.config.max_position_embeddings for network in self.text_encoders.values()]
        return min(self.tokenizer.model_max_length, *limits)

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt that is not truncated, including one start and end."""
        return self.prompt_chunks * (self.chunk_length - 2) + 2

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The networks that a method may train, by their names in options, checkpoints and metrics."""
        return {part: getattr(self, part) for part in self.component_names}

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """The parts that encode captions."""
        return {part: net for part, net in self.parts.items() if self.component_names[part].startswith("text_encoder")}

    @property
    def components(self) -> dict[str, nn.Module]:
        """The parts by their names in diffusers' pipelines and LoRA files."""
        return {self.component_names[part]: network for part, network in self.parts.items()}

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
        posterior = self.vae.encode(images.float()).latent_dist
        return posterior.mean, posterior.std

    def latents(self, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """Scaled latents `[batch, 4, h/8, w/8]` from their moments and standard normal noise."""
        return (mean + std * noise) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images `[batch, 3, h, w]`, roughly in -1..1, of scaled latents `[batch, 4, h/8, w/8]`, in fp32."""
        return decode_latents(self.vae, latents.float() / self.vae.config.scaling_factor, self.vae_scale_factor**2)

    @property
    def prompt_tokenizer(self) -> PromptTokenizer:
        """Turns prompts to token ids without the networks."""
        return PromptTokenizer(self.tokenizers, self.chunk_length, self.prompt_chunks, self.base_vocabulary_size)

    def tokenize(self, captions: list[str]) -> Tensor:
        """Token ids `[batch, tokenizers * prompt_chunks * tokens]`, padded or truncated to the encoder's length per chunk."""
        return self.prompt_tokenizer(captions)

    def encode_text(self, ids: Tensor) -> dict[str, Tensor]:
        """The `text_outputs` of token ids from `tokenize`: `context` `[batch, prompt_chunks * tokens, width]`, and others."""
        raise NotImplementedError

    @property
    def text_settings(self) -> str:
        """Settings besides the weights that the text outputs depend on."""
        options = [f"{key}-{value}" for key, value in self.text_options.items()]
        return "-".join([str(self.compute_dtype).removeprefix("torch."), *options])

    @property
    def text_options(self) -> dict[str, str | int]:
        """Options that the text outputs depend on, without `clip_skip` if it is the usual one."""
        options = {"clip_skip": self.clip_skip} if self.diffusers_clip_skip else {}
        return options | ({"empty_caption": self.empty_caption} if self.empty_caption else {})

    @property
    def diffusers_clip_skip(self) -> int:
        """`clip_skip` in the counting of diffusers' pipelines: layers left out beside those that the family never uses."""
        return self.clip_skip - self.default_clip_skip

    def set_clip_skip(self, clip_skip: int) -> None:
        """Choose the layer as WebUI counts; `ValueError` for one that the text encoders lack."""
        most = min(network.config.num_hidden_layers for network in self.text_encoders.values())
        if not self.default_clip_skip <= clip_skip <= most:
            raise ValueError(
                f"model.clip_skip={clip_skip}: choose {self.default_clip_skip} (the usual layer of {self.family}) to {most}"
            )
        self.clip_skip = clip_skip

    def list_unused_modules(self) -> list[nn.Module]:
        """Layers of the text encoders that no output depends on."""
        raise NotImplementedError

    def freeze_unused_modules(self) -> None:
        """Freeze the weights that would get no gradient."""
        for module in self.list_unused_modules():
            module.requires_grad_(False)

    def text_shapes(self, count: int) -> dict[str, tuple[int, ...]]:
        """Shapes of `encode_text`'s tensors for `count` captions."""
        raise NotImplementedError

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output `[batch, 4, h, w]`: noise or velocity, depending on `prediction_type`."""
        raise NotImplementedError

    def condition(self, batch: dict[str, Tensor]) -> Conditioning:
        """The conditioning of a batch that holds the (cached) `text_outputs`, or else token `ids`, and the `image_inputs`."""
        has_text = self.text_outputs[0] in batch
        text = {name: batch[name] for name in self.text_outputs} if has_text else self.encode_text(batch["ids"])
        return Conditioning(text, {name: batch[name] for name in self.image_inputs})

    def condition_prompts(self, prompts: list[str], geometry: Tensor | None = None) -> Conditioning:
        """The conditioning of prompts for images of one `geometry` `[6]`, see `describe_geometry`; default: without a size."""
        device = next(iter(self.text_encoders.values())).device
        geometry = torch.zeros(6) if geometry is None else geometry
        batch = {"geometry": geometry.expand(len(prompts), -1).to(device)}
        return self.condition(batch | {"ids": self.tokenize(prompts).to(device)})

    def build_prompt_arguments(self, prompts: list[str], negative_prompts: list[str]) -> dict[str, Tensor]:
        """The prompts as arguments of diffusers' pipelines, which would encode some of them in other ways."""
        names = {"context": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
        text, negative = (self.condition_prompts(texts).text for texts in (prompts, negative_prompts))
        arguments = {names[name]: tensor for name, tensor in text.items()}
        return arguments | {f"negative_{names[name]}": tensor for name, tensor in negative.items()}

    @torch.no_grad()
    def cache_unconditional_text(self) -> None:
        """Store the text outputs of the empty caption as buffers `unconditional_*` `[1, …]`, for guidance in training."""
        for name, tensor in self.condition_prompts([""]).text.items():
            self.register_buffer(f"unconditional_{name}", tensor, persistent=False)

    def append_unconditional(self, conditioning: Conditioning) -> Conditioning:
        """`conditioning` followed by that of the same images with the empty caption, `[2 * batch, …]`, for guidance."""
        text = {name: getattr(self, f"unconditional_{name}") for name in self.text_outputs}
        return conditioning.join(conditioning.replace_text(text))

    def replace_networks(self, networks: dict[str, nn.Module]) -> "DiffusionModel":
        """A model of these networks and otherwise as this one."""
        own = {name: network for name, network in self.named_children() if network is not self.noise_process}
        model = type(self)(own | networks, self.tokenizers, self.scheduler)
        for attribute in COPIED_ATTRIBUTES:
            setattr(model, attribute, getattr(self, attribute))
        return model

    def build_pipeline(self, task: str = "text_to_image", **parts):
        """A diffusers pipeline for a task in `pipeline_names`: these networks, a copy of the scheduler, and `parts`."""
        import diffusers

        tokenizers = dict(zip(self.tokenizer_names, self.tokenizers, strict=True))
        return getattr(diffusers, self.pipeline_names[task])(
            **self.components,
            **tokenizers,
            **self.pipeline_options,
            vae=self.vae,
            scheduler=copy.deepcopy(self.scheduler),
            **parts,
        )

    @property
    def pipeline_options(self) -> dict:
        """Further arguments of the family's pipelines."""
        return {}
