"""From one picture to another without training on what lies between (DiffMorpher, Zhang et al., 2023, arXiv 2312.07409)."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdft.apps.morph.attention import SharedAttention
from sdft.apps.morph.ddim_inversion import DDIM
from sdft.apps.morph.interpolation import adain, lerp, slerp, space_evenly
from sdft.apps.morph.video import DistanceFunction, FrameSequence, compute_neighbour_distances, psnr
from sdft.data.dataset import CaptionedImage
from sdft.lora.interpolation import INTERPOLATION_MODES, AdapterInterpolator
from sdft.models.cpu_threads import limit_threads
from sdft.models.stable_diffusion import StableDiffusion

FRAME_SPACINGS = ("even", "uniform")
ADAIN_MODES = ("noise", "result", "none")
MAX_SPACING_ITERATIONS = 4  # of even frame_spacing, at most


@dataclass
class MorphSettings:
    """The parts of the method, each of which can be left out.

    `lora`: what of both ends' adapters is interpolated (see `sdft.lora.interpolation`). `adain`: what gets the ends' statistics, the
    interpolated noise, or the latents that come of it. `attention` is the share of the steps, from the noisiest, in which
    frames attend to the ends' keys and values. `frame_spacing` even puts frames equally far apart to the eye, in `spacing_iterations` of looking.
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
            raise ValueError(f"attention={self.attention}: choose the share of steps, from 0 (off) to 1")
        if self.frame_spacing not in FRAME_SPACINGS:
            raise ValueError(f"frame_spacing={self.frame_spacing}: choose one of {', '.join(FRAME_SPACINGS)}")
        if not 1 <= self.spacing_iterations <= MAX_SPACING_ITERATIONS:
            raise ValueError(f"spacing_iterations={self.spacing_iterations}: choose from 1 to {MAX_SPACING_ITERATIONS}")

    def ablations(self) -> dict[str, "MorphSettings"]:
        """This one, and it without each part that it has."""
        found = {"all parts": self}
        if self.lora != "none":
            found["no LoRA"] = replace(self, lora="none")
        if self.adain != "none":
            found["no AdaIN"] = replace(self, adain="none")
        if self.attention:
            found["no attention"] = replace(self, attention=0.0)
        if self.frame_spacing == "even":
            found["no pacing"] = replace(self, frame_spacing="uniform")
        return found


@dataclass
class Endpoints:
    """What both pictures are to the model: clean latents, the noise they come from, and the words."""

    latents: list[Tensor]
    noise: list[Tensor]
    contexts: list[Tensor]


ProgressCallback = Callable[[int], None]  # told how many predictions were made


class DiffMorpher:
    """Two pictures of one size, which the model takes, and their words; `blend` holds their adapters, None for lora=none."""

    def __init__(
        self,
        model: StableDiffusion,
        ddim: DDIM,
        pictures: list[CaptionedImage],
        blend: AdapterInterpolator | None,
        inversion_iterations: int = 0,
    ):
        if inversion_iterations < 0:
            raise ValueError(f"inversion_iterations={inversion_iterations}: choose 0 or more")
        self.model, self.ddim, self.pictures, self.blend, self.inversion_iterations = (
            model,
            ddim,
            pictures,
            blend,
            inversion_iterations,
        )
        self.known: dict[bool, Endpoints] = {}
        self.on_predictions: ProgressCallback = lambda count: None

    def count_predictions(self, recipe: MorphSettings, count: int) -> int:
        """How many predictions `film` makes at most, but for the ends'."""
        passes = count + (count - 2) * (recipe.spacing_iterations if recipe.frame_spacing == "even" else 0)
        turns = 1 + (recipe.spacing_iterations if recipe.frame_spacing == "even" else 0)
        return passes * self.ddim.steps + turns * 2 * self.shared(recipe)

    def shared(self, recipe: MorphSettings) -> int:
        """Steps with the ends' attention."""
        return round(recipe.attention * self.ddim.steps)

    def film(self, recipe: MorphSettings, count: int, distances: DistanceFunction | None) -> FrameSequence:
        """`count` frames from the first picture to the second."""
        alphas = np.linspace(0, 1, count).tolist()
        seen = dict(zip(alphas, self.frames(alphas, recipe), strict=True))
        if recipe.frame_spacing == "even":
            for _ in range(recipe.spacing_iterations):
                known = sorted(seen)
                alphas = space_evenly(
                    known, compute_neighbour_distances([seen[share] for share in known], distances), count
                )
                missing = [share for share in alphas if share not in seen]
                seen |= zip(missing, self.frames(missing, recipe), strict=True)
        frames = [seen[share] for share in alphas]
        given = [picture.image for picture in self.pictures]
        if distances is None:
            return FrameSequence(given, alphas, frames, [], [])
        endpoint_distances = distances(given, [frames[0], frames[-1]]).tolist()
        return FrameSequence(given, alphas, frames, compute_neighbour_distances(frames, distances), endpoint_distances)

    def frames(self, alphas: list[float], recipe: MorphSettings) -> list[Image.Image]:
        return [self.picture(latents) for latents in self.latents(alphas, recipe)] if alphas else []

    @torch.no_grad()
    def latents(self, alphas: list[float], recipe: MorphSettings) -> list[Tensor]:
        """Of each frame `[1, 4, h, w]`. All frames and both ends take each step together, so only one step's keys are kept."""
        lora = recipe.lora != "none"
        ends = self.ends(lora)
        frames = [slerp(*ends.noise, share) for share in alphas]
        if recipe.adain == "noise":
            frames = [adain(frame, *ends.noise, share) for frame, share in zip(frames, alphas, strict=True)]
        contexts = [lerp(*ends.contexts, share) for share in alphas]
        origins, shared = list(ends.noise), self.shared(recipe)
        attention = SharedAttention(self.model.unet) if shared else None
        try:
            for done, step in enumerate(reversed(range(self.ddim.steps))):
                mixed = done < shared
                for end in (0, 1) if mixed else ():
                    with attention.recording(end):
                        origins[end] = self.denoise_step(origins[end], ends.contexts[end], step, float(end), lora)
                for i, share in enumerate(alphas):
                    with attention.mixing(share) if mixed else nullcontext():
                        frames[i] = self.denoise_step(frames[i], contexts[i], step, share, lora)
        finally:
            if attention:
                attention.remove()
        if recipe.adain == "result":
            frames = [adain(frame, *ends.latents, share) for frame, share in zip(frames, alphas, strict=True)]
        return frames

    def denoise_step(self, latents: Tensor, context: Tensor, step: int, share: float, lora: bool) -> Tensor:
        """One stride down, with the adapters at `share`."""
        self.wear(share if lora else None)
        return self.ddim.denoise_step(latents, self.predict(latents, self.ddim.timesteps[step], context), step)

    def wear(self, share: float | None) -> None:
        if self.blend is not None:
            self.blend.disable() if share is None else self.blend.interpolate_unet(share)

    def predict(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        self.on_predictions(1)
        compute = self.model.compute_dtype
        mixed = torch.autocast(latents.device.type, compute, enabled=compute is not torch.float32)
        with mixed, limit_threads(self.model.unet, latents.shape):
            return self.model.predict(latents, timestep, context).float()

    @torch.no_grad()
    def ends(self, lora: bool) -> Endpoints:
        """Found once: each picture inverted while its own adapter is active, or with the base alone."""
        if lora not in self.known:
            latents = [self.encoded(picture) for picture in self.pictures]
            self.known[lora] = Endpoints(latents, *zip(*self.inverted(latents, lora), strict=True))
        return self.known[lora]

    def inverted(self, latents: list[Tensor], lora: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Noise and context of each end."""
        for end, (clean, picture) in enumerate(zip(latents, self.pictures, strict=True)):
            self.wear(float(end) if lora else None)
            if lora:
                self.blend.select_text_encoder(end)
            context = self.model.condition(self.model.tokenize([picture.caption]).to(clean.device))

            def predict(x: Tensor, timestep: Tensor, context: Tensor = context) -> Tensor:
                return self.predict(x, timestep, context)

            yield self.ddim.invert(predict, clean, self.inversion_iterations), context

    def encoded(self, picture: CaptionedImage) -> Tensor:
        from sdft.data.images import image_to_pixels

        mean, std = self.model.moments(image_to_pixels(picture.image)[None].to(self.model.unet.device))
        return self.model.latents(mean, std, torch.zeros_like(std))

    def picture(self, latents: Tensor) -> Image.Image:
        return self.model.build_pipeline().image_processor.postprocess(self.model.decode(latents))[0]

    def compute_autoencoder_psnr(self) -> list[float]:
        """PSNR of each picture through the autoencoder alone: more than that no frame can have."""
        return [psnr(self.picture(self.encoded(picture)), picture.image) for picture in self.pictures]
