"""Pictures from a model: one seed an image, so that a picture depends on neither batch size nor order."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from PIL import Image

import sdft.distributed as processes
from sdft.models.cpu_threads import limit_threads
from sdft.models.noise_schedulers import build_scheduler, check_scheduler_name
from sdft.models.stable_diffusion import StableDiffusion

NUM_TRAIN_TIMESTEPS = 1000  # of Stable Diffusion's noise
MAX_LCM_STEPS = 50  # of the path that the LCM scheduler goes
ImageSize = int | tuple[int, int]  # of a square's side, or (width, height), in pixels


@dataclass
class Sampling:
    """`seed` + i starts the noise of the i-th image of every prompt, as `torch.Generator().manual_seed` does.

    `scheduler` is a name of `sdft.models.noise_schedulers`, or None for the one that the checkpoint ships.
    """

    steps: int = 30
    guidance_scale: float = 7.5
    images: int = 1
    seed: int = 0
    batch_size: int = 4
    scheduler: str | None = None
    negative_prompt: str | None = None

    def __post_init__(self):
        for key in ("steps", "images", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"sampling.{key}={getattr(self, key)}: choose 1 or more")
        if self.steps > NUM_TRAIN_TIMESTEPS:
            raise ValueError(
                f"sampling.steps={self.steps}: choose {NUM_TRAIN_TIMESTEPS} or less, for there are no more timesteps"
            )
        if self.scheduler == "lcm" and self.steps > MAX_LCM_STEPS:
            raise ValueError(
                f"sampling.steps={self.steps}: sampling.scheduler=lcm takes {MAX_LCM_STEPS} or less; 4 is usual"
            )
        for key in ("guidance_scale", "seed"):
            if getattr(self, key) < 0:
                raise ValueError(f"sampling.{key}={getattr(self, key)}: choose 0 or more")
        check_scheduler_name(self.scheduler, "sampling.scheduler")

    def to_dict(self) -> dict:
        """The words in which it is written down; one that is not given is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def create_scheduler(self, model: StableDiffusion):
        """The sampler that draws, which is nobody else's."""
        return build_scheduler(self.scheduler, model.scheduler) if self.scheduler else copy.deepcopy(model.scheduler)

    def requests(self, prompts: list[str]) -> list[tuple[str, int]]:
        """(prompt, seed) of every image, prompt by prompt."""
        return [(prompt, self.seed + i) for prompt in prompts for i in range(self.images)]

    def __call__(self, model: StableDiffusion, prompts: list[str], resolution: ImageSize) -> list[Image.Image]:
        """One RGB picture per request, in order: all of them in the first process, none in others, which share the work."""
        return [p for made in self.sample_batches(model, self.requests(prompts), resolution) for p in made]

    def sample_batches(self, model: StableDiffusion, requests: list[tuple[str, int]], resolution: ImageSize):
        """The same in rounds of a batch for every process: the first one's pictures of each round are complete and in order.

        Each takes part in every round, with one request again where there are too few: sharded weights need all of them.
        """
        first, count = processes.rank(), processes.world_size()
        for start in range(0, len(requests), self.batch_size * count):
            these = requests[start : start + self.batch_size * count]
            mine = these[first::count]
            shares = processes.gather(list(self.sample_images(model, mine or these[:1], resolution)))
            yield [shares[i % count][i // count] for i in range(len(these))] if shares else []

    def sample_images(
        self, model: StableDiffusion, requests: list[tuple[str, int]], resolution: ImageSize
    ) -> Iterator[Image.Image]:
        """One RGB picture of each (prompt, seed)."""
        pipeline, device = model.build_pipeline(), model.unet.device
        pipeline.scheduler = self.create_scheduler(model)
        width, height = resolution if isinstance(resolution, tuple) else (resolution, resolution)
        pipeline.set_progress_bar_config(disable=True)
        for start in range(0, len(requests), self.batch_size):
            batch = requests[start : start + self.batch_size]
            shape = model.batch_shape(len(batch), (width, height))
            mixed = torch.autocast(device.type, model.compute_dtype, enabled=model.compute_dtype is not torch.float32)
            with (
                eval_mode(model),
                move_to_device(model, device),
                torch.no_grad(),
                mixed,
                limit_threads(model.unet, shape),
            ):
                latents = pipeline(
                    **build_prompt_inputs(model, [prompt for prompt, _ in batch], device, self.negative_prompt),
                    generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
                    height=height,
                    width=width,
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance_scale,
                    output_type="latent",
                ).images
                pictures = pipeline.image_processor.postprocess(model.decode(latents))
            yield from pictures


def build_prompt_inputs(
    model: StableDiffusion, prompts: list[str], device: torch.device, negative: str | None = None
) -> dict:
    """What a pipeline takes: prompts, or of a model with several prompt_chunks what it makes of them and of `negative`, or of none."""
    away_from = [negative or ""] * len(prompts)
    if model.prompt_chunks == 1:
        return {"prompt": prompts} | ({"negative_prompt": away_from} if negative else {})
    context, none = (model.condition(model.tokenize(texts).to(device)) for texts in (prompts, away_from))
    return {"prompt_embeds": context, "negative_prompt_embeds": none}


@contextmanager
def move_to_device(model: StableDiffusion, device: torch.device):
    """All parts on `device`, and afterwards each where it was."""
    places = {part: part.device for part in (model.vae, model.text_encoder)}
    for part in places:
        part.to(device)
    try:
        yield
    finally:
        for part, place in places.items():
            part.to(place)


@contextmanager
def eval_mode(model: torch.nn.Module):
    """Evaluation mode, and afterwards each module's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
