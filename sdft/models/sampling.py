"""Sample images with one seed each, so that an image depends on neither batch size nor order."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from inspect import signature

import torch
from PIL import Image
from torch import Tensor

import sdft.distributed as processes
from sdft.models.conditioning import FULL_IMAGE, describe_geometry
from sdft.models.cpu_threads import limit_threads
from sdft.models.diffusion_model import DiffusionModel
from sdft.models.noise_schedulers import build_scheduler, check_scheduler_name

NUM_TRAIN_TIMESTEPS = 1000  # of Stable Diffusion
MAX_LCM_STEPS = 50  # the LCM scheduler's original_inference_steps
MAX_GEOMETRY = 16384  # pixels
GEOMETRY_OPTIONS = ("original_size", "crops_coords_top_left", "target_size")
ImageSize = int | tuple[int, int]  # side of a square, or (width, height), in pixels


@dataclass
class Sampling:
    """The i-th image of every prompt starts from noise of `torch.Generator().manual_seed(seed + i)`.

    `scheduler` is a name from `sdft.models.noise_schedulers`, or None for the model's own. `original_size` and `target_size`
    (height, width) and `crops_coords_top_left` are diffusers' names of what Stable Diffusion XL knows of an image, in pixels; the
    default is a whole image of the sampled size.
    """

    steps: int = 30
    guidance_scale: float = 7.5
    images: int = 1
    seed: int = 0
    batch_size: int = 4
    scheduler: str | None = None
    negative_prompt: str | None = None
    original_size: list[int] | None = None
    crops_coords_top_left: list[int] | None = None
    target_size: list[int] | None = None

    def __post_init__(self):
        for key in ("steps", "images", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"sampling.{key}={getattr(self, key)}: choose 1 or more")
        if self.steps > NUM_TRAIN_TIMESTEPS:
            raise ValueError(
                f"sampling.steps={self.steps}: choose at most {NUM_TRAIN_TIMESTEPS}, the number of timesteps"
            )
        if self.scheduler == "lcm" and self.steps > MAX_LCM_STEPS:
            raise ValueError(
                f"sampling.steps={self.steps}: choose at most {MAX_LCM_STEPS} for sampling.scheduler=lcm; 4 is usual"
            )
        for key in ("guidance_scale", "seed"):
            if getattr(self, key) < 0:
                raise ValueError(f"sampling.{key}={getattr(self, key)}: choose 0 or more")
        check_scheduler_name(self.scheduler, "sampling.scheduler")
        for key, value in self.geometry_options.items():
            setattr(self, key, list(value))  # Hydra's list becomes a plain one
            minimum = 0 if key == "crops_coords_top_left" else 1
            if len(value) != 2 or not all(minimum <= pixels <= MAX_GEOMETRY for pixels in value):
                form = "[top,left]" if minimum == 0 else "[height,width]"
                raise ValueError(f"sampling.{key}={list(value)}: give {form} of {minimum} to {MAX_GEOMETRY} pixels")

    def to_dict(self) -> dict:
        """The settings without those that are None."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @property
    def geometry_options(self) -> dict[str, list[int]]:
        """Those that are set."""
        return {key: value for key in GEOMETRY_OPTIONS if (value := getattr(self, key)) is not None}

    def check(self, model: DiffusionModel) -> None:
        """`ValueError` for options that the model has no input for."""
        if self.geometry_options and "geometry" not in model.image_inputs:
            key, value = next(iter(self.geometry_options.items()))
            raise ValueError(f"sampling.{key}={list(value)}: {model.family} has no such input; leave it out")

    def describe_geometry(self, size: tuple[int, int]) -> Tensor:
        """The geometry `[6]` of images of `size`, (width, height)."""
        original, target = (tuple(value)[::-1] if value else size for value in (self.original_size, self.target_size))
        return describe_geometry(original, tuple(self.crops_coords_top_left or FULL_IMAGE)[::-1], target)

    def create_scheduler(self, model: DiffusionModel):
        """A new scheduler: schedulers have state and are not shared."""
        return build_scheduler(self.scheduler, model.scheduler) if self.scheduler else copy.deepcopy(model.scheduler)

    def requests(self, prompts: list[str]) -> list[tuple[str, int]]:
        """(prompt, seed) of every image, prompt by prompt."""
        return [(prompt, self.seed + i) for prompt in prompts for i in range(self.images)]

    def __call__(self, model: DiffusionModel, prompts: list[str], resolution: ImageSize) -> list[Image.Image]:
        """One RGB image per request, in order, on rank 0; an empty list on the other ranks, which help to sample."""
        batches = self.sample_batches(model, self.requests(prompts), resolution)
        return [image for batch in batches for image in batch]

    def sample_batches(
        self, model: DiffusionModel, requests: list[tuple[str, int]], resolution: ImageSize
    ) -> Iterator[list[Image.Image]]:
        """Sample in rounds of one batch per rank; rank 0 yields each round's images in order.

        Every rank runs every round (repeating a request if needed), because FSDP forward passes are collective.
        """
        rank, world_size = processes.rank(), processes.world_size()
        with move_to_device(model, model.unet.device):
            for start in range(0, len(requests), self.batch_size * world_size):
                round_requests = requests[start : start + self.batch_size * world_size]
                rank_requests = round_requests[rank::world_size] or round_requests[:1]
                gathered = processes.gather(list(self.sample_images(model, rank_requests, resolution)))
                images = [
                    gathered[i % world_size][i // world_size] for i in range(len(round_requests) if gathered else 0)
                ]
                yield images

    def sample_images(
        self, model: DiffusionModel, requests: list[tuple[str, int]], resolution: ImageSize
    ) -> Iterator[Image.Image]:
        """One RGB image per (prompt, seed), on this rank; all parts of the model are on one device."""
        size = resolution if isinstance(resolution, tuple) else (resolution, resolution)
        for start in range(0, len(requests), self.batch_size):
            batch = requests[start : start + self.batch_size]
            shape = model.batch_shape(len(batch), size)
            with eval_mode(model), torch.no_grad(), limit_threads(model.unet, shape):
                images = model.decode(self.sample_latents(model, batch, size))
            yield from to_pil_images(images)

    def sample_latents(self, model: DiffusionModel, requests: list[tuple[str, int]], size: tuple[int, int]) -> Tensor:
        """Denoised latents `[batch, 4, h/8, w/8]` of (prompt, seed), in fp32, whatever the precision of the network."""
        self.check(model)
        device, prompts = model.unet.device, [prompt for prompt, _ in requests]
        generators = [torch.Generator().manual_seed(seed) for _, seed in requests]
        scheduler, is_guided = self.create_scheduler(model), self.guidance_scale > 1
        scheduler.set_timesteps(self.steps, device=device)
        geometry = self.describe_geometry(size)
        conditioning = model.condition_prompts(prompts, geometry)
        if is_guided:
            negative = [self.negative_prompt or ""] * len(prompts)
            conditioning = model.condition_prompts(negative, geometry).join(conditioning)
        shape = model.batch_shape(1, size)
        latents = torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(device)
        latents = latents * scheduler.init_noise_sigma
        arguments = {"generator": generators} if "generator" in signature(scheduler.step).parameters else {}
        for timestep in scheduler.timesteps:
            noisy = scheduler.scale_model_input(torch.cat([latents, latents]) if is_guided else latents, timestep)
            output = model.predict(noisy, timestep, conditioning).float()
            if is_guided:
                unconditional, conditional = output.chunk(2)
                output = unconditional + self.guidance_scale * (conditional - unconditional)
            latents = scheduler.step(output, timestep, latents, **arguments).prev_sample
        return latents


def to_pil_images(images: Tensor) -> list[Image.Image]:
    """RGB images of `[batch, 3, h, w]`, -1..1, as diffusers' pipelines return them."""
    from diffusers.image_processor import VaeImageProcessor

    return VaeImageProcessor().postprocess(images)


@contextmanager
def move_to_device(model: DiffusionModel, device: torch.device):
    """Move the VAE and the text encoders to `device`; move them back afterwards."""
    devices = {part: part.device for part in (model.vae, *model.text_encoders.values())}
    for part in devices:
        part.to(device)
    try:
        yield
    finally:
        for part, previous_device in devices.items():
            part.to(previous_device)


@contextmanager
def eval_mode(model: torch.nn.Module):
    """Switch to eval mode; restore each module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
