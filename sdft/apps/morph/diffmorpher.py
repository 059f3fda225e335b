"""DiffMorpher: interpolate between two images in latents, adapters and attention (Zhang et al., 2023, arXiv 2312.07409)."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdft.apps.morph.attention import SharedAttention
from sdft.apps.morph.ddim_inversion import DDIM
from sdft.apps.morph.frame_sequence import DistanceFunction, FrameSequence, compute_neighbour_distances, psnr
from sdft.apps.morph.interpolation import adain, slerp, space_evenly
from sdft.data.dataset import CaptionedImage
from sdft.lora.interpolation import INTERPOLATION_MODES, AdapterInterpolator
from sdft.models.conditioning import Conditioning, describe_geometry
from sdft.models.cpu_threads import limit_threads
from sdft.models.diffusion_model import DiffusionModel
from sdft.models.sampling import to_pil_images

FRAME_SPACINGS = ("even", "uniform")
ADAIN_MODES = ("noise", "result", "none")
MAX_SPACING_ITERATIONS = 4  # of even frame_spacing


@dataclass
class MorphSettings:
    """Parts of the method, each of which can be disabled.

    `lora`: interpolation mode of the adapters (see `sdft.lora.interpolation`). `adain`: whether the interpolated noise or the
    resulting latents get the statistics of the endpoints. `attention`: fraction of the steps, from the noisiest, with shared
    attention. `frame_spacing` even makes perceptual distances equal, in `spacing_iterations` rounds of measuring.
    """

    lora: str = "dw"
    adain: str = "noise"
    attention: float = 0.4
    frame_spacing: str = "even"
    spacing_iterations: int = 1

    def __post_init__(self):
        if self.lora not in (*INTERPOLATION_MODES, "none"):
            raise ValueError(f"lora={self.lora}: choose one of {', '.join(INTERPOLATION_MODES)}, none")
        if self.adain not in ADAIN_MODES:
            raise ValueError(f"adain={self.adain}: choose one of {', '.join(ADAIN_MODES)}")
        if not 0 <= self.attention <= 1:
            raise ValueError(f"attention={self.attention}: choose the fraction of steps, from 0 (off) to 1")
        if self.frame_spacing not in FRAME_SPACINGS:
            raise ValueError(f"frame_spacing={self.frame_spacing}: choose one of {', '.join(FRAME_SPACINGS)}")
        if not 1 <= self.spacing_iterations <= MAX_SPACING_ITERATIONS:
            raise ValueError(f"spacing_iterations={self.spacing_iterations}: choose from 1 to {MAX_SPACING_ITERATIONS}")

    def list_ablations(self) -> dict[str, "MorphSettings"]:
        """These settings, and copies with one enabled part removed."""
        ablations = {"all parts": self}
        if self.lora != "none":
            ablations["no LoRA"] = replace(self, lora="none")
        if self.adain != "none":
            ablations["no AdaIN"] = replace(self, adain="none")
        if self.attention:
            ablations["no attention"] = replace(self, attention=0.0)
        if self.frame_spacing == "even":
            ablations["no even spacing"] = replace(self, frame_spacing="uniform")
        return ablations


@dataclass
class Endpoints:
    """Clean latents, inverted noise and conditioning of both images."""

    latents: list[Tensor]
    noise: list[Tensor]
    conditionings: list[Conditioning]


ProgressCallback = Callable[[int], None]  # gets the number of new predictions


class DiffMorpher:
    """Two captioned images of one size that the model supports; `interpolator` holds their adapters, None for lora=none."""

    def __init__(
        self,
        model: DiffusionModel,
        ddim: DDIM,
        images: list[CaptionedImage],
        interpolator: AdapterInterpolator | None,
        inversion_iterations: int = 0,
    ):
        if inversion_iterations < 0:
            raise ValueError(f"inversion_iterations={inversion_iterations}: choose 0 or more")
        self.model, self.ddim, self.images, self.interpolator = model, ddim, images, interpolator
        self.inversion_iterations = inversion_iterations
        self.endpoint_cache: dict[bool, Endpoints] = {}
        self.on_predictions: ProgressCallback = lambda count: None

    def count_predictions(self, settings: MorphSettings, count: int) -> int:
        """Upper bound of the predictions of `generate_sequence`, without the inversion."""
        iterations = settings.spacing_iterations if settings.frame_spacing == "even" else 0
        passes = count + (count - 2) * iterations
        return passes * self.ddim.steps + (1 + iterations) * 2 * self.count_shared_steps(settings)

    def count_shared_steps(self, settings: MorphSettings) -> int:
        return round(settings.attention * self.ddim.steps)

    def generate_sequence(
        self, settings: MorphSettings, count: int, distances: DistanceFunction | None
    ) -> FrameSequence:
        """Generate `count` frames from the first image to the second."""
        alphas = np.linspace(0, 1, count).tolist()
        generated = dict(zip(alphas, self.generate_frames(alphas, settings), strict=True))
        if settings.frame_spacing == "even":
            for _ in range(settings.spacing_iterations):
                measured = sorted(generated)
                gaps = compute_neighbour_distances([generated[alpha] for alpha in measured], distances)
                alphas = space_evenly(measured, gaps, count)
                missing = [alpha for alpha in alphas if alpha not in generated]
                generated |= zip(missing, self.generate_frames(missing, settings), strict=True)
        frames = [generated[alpha] for alpha in alphas]
        originals = [sample.image for sample in self.images]
        if distances is None:
            return FrameSequence(originals, alphas, frames, [], [])
        endpoint_distances = distances(originals, [frames[0], frames[-1]]).tolist()
        return FrameSequence(
            originals, alphas, frames, compute_neighbour_distances(frames, distances), endpoint_distances
        )

    def generate_frames(self, alphas: list[float], settings: MorphSettings) -> list[Image.Image]:
        return [self.decode_image(latents) for latents in self.generate_latents(alphas, settings)] if alphas else []

    @torch.no_grad()
    def generate_latents(self, alphas: list[float], settings: MorphSettings) -> list[Tensor]:
        """Latents `[1, 4, h, w]` of each frame. Frames and endpoints advance step by step, so only one step's keys are stored."""
        lora = settings.lora != "none"
        endpoints = self.get_endpoints(lora)
        frames = [slerp(*endpoints.noise, alpha) for alpha in alphas]
        if settings.adain == "noise":
            frames = [adain(frame, *endpoints.noise, alpha) for frame, alpha in zip(frames, alphas, strict=True)]
        first, second = endpoints.conditionings
        conditionings = [first.interpolate(second, alpha) for alpha in alphas]
        endpoint_latents, shared_steps = list(endpoints.noise), self.count_shared_steps(settings)
        attention = SharedAttention(self.model.unet) if shared_steps else None
        try:
            for number, step in enumerate(reversed(range(self.ddim.steps))):
                mix = number < shared_steps
                for end in (0, 1) if mix else ():
                    with attention.record_endpoint(end):
                        endpoint_latents[end] = self.denoise_step(
                            endpoint_latents[end], endpoints.conditionings[end], step, float(end), lora
                        )
                for i, alpha in enumerate(alphas):
                    with attention.mix_endpoints(alpha) if mix else nullcontext():
                        frames[i] = self.denoise_step(frames[i], conditionings[i], step, alpha, lora)
        finally:
            if attention:
                attention.remove()
        if settings.adain == "result":
            frames = [adain(frame, *endpoints.latents, alpha) for frame, alpha in zip(frames, alphas, strict=True)]
        return frames

    def denoise_step(self, latents: Tensor, conditioning: Conditioning, step: int, alpha: float, lora: bool) -> Tensor:
        """One DDIM step with the adapters interpolated at `alpha`."""
        self.set_adapters(alpha if lora else None)
        return self.ddim.denoise_step(latents, self.predict(latents, self.ddim.timesteps[step], conditioning), step)

    def set_adapters(self, alpha: float | None) -> None:
        if self.interpolator is not None:
            self.interpolator.disable() if alpha is None else self.interpolator.interpolate_unet(alpha)

    def predict(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        self.on_predictions(1)
        with limit_threads(self.model.unet, latents.shape):
            return self.model.predict(latents, timestep, conditioning).float()

    @torch.no_grad()
    def get_endpoints(self, lora: bool) -> Endpoints:
        """Invert each image with its own adapter, or with the base if not `lora`; cached."""
        if lora not in self.endpoint_cache:
            latents = [self.encode_image(image) for image in self.images]
            inverted = self.invert_endpoints(latents, lora)
            self.endpoint_cache[lora] = Endpoints(latents, *zip(*inverted, strict=True))
        return self.endpoint_cache[lora]

    def invert_endpoints(self, latents: list[Tensor], lora: bool) -> Iterator[tuple[Tensor, Conditioning]]:
        """Noise and conditioning of each endpoint."""
        for end, (clean, image) in enumerate(zip(latents, self.images, strict=True)):
            self.set_adapters(float(end) if lora else None)
            if lora:
                self.interpolator.select_text_encoder(end)
            conditioning = self.model.condition_prompts([image.caption], describe_geometry(image.image.size))

            def predict(x: Tensor, timestep: Tensor, conditioning: Conditioning = conditioning) -> Tensor:
                return self.predict(x, timestep, conditioning)

            yield self.ddim.invert(predict, clean, self.inversion_iterations), conditioning

    def encode_image(self, image: CaptionedImage) -> Tensor:
        from sdft.data.images import image_to_pixels

        mean, std = self.model.moments(image_to_pixels(image.image)[None].to(self.model.unet.device))
        return self.model.latents(mean, std, torch.zeros_like(std))

    def decode_image(self, latents: Tensor) -> Image.Image:
        return to_pil_images(self.model.decode(latents))[0]

    def compute_autoencoder_psnr(self) -> list[float]:
        """PSNR in dB of each image reconstructed by the autoencoder: the upper bound of any frame."""
        return [psnr(self.decode_image(self.encode_image(image)), image.image) for image in self.images]
