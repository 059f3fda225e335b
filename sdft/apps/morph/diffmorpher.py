"""From one picture to another without training on what lies between (DiffMorpher, Zhang et al., 2023, arXiv 2312.07409)."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdft.apps.morph.attention import SharedAttention
from sdft.apps.morph.ddim_inversion import Ddim
from sdft.apps.morph.interpolation import adain, even, lerp, slerp
from sdft.apps.morph.video import Distances, Film, between, psnr
from sdft.data.dataset import Picture
from sdft.lora.interpolation import KINDS, Blend
from sdft.models.cpu_threads import shared
from sdft.models.stable_diffusion import StableDiffusion

PACINGS = ("even", "uniform")
ADAIN = ("noise", "result", "none")
ROUNDS = 4  # of even frame_spacing, at most


@dataclass
class Recipe:
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
        if self.lora not in (*KINDS, "none"):
            raise ValueError(f"lora={self.lora}: choose one of {', '.join(KINDS)}, none")
        if self.adain not in ADAIN:
            raise ValueError(f"adain={self.adain}: choose one of {', '.join(ADAIN)}")
        if not 0 <= self.attention <= 1:
            raise ValueError(f"attention={self.attention}: choose the share of steps, from 0 (off) to 1")
        if self.frame_spacing not in PACINGS:
            raise ValueError(f"frame_spacing={self.frame_spacing}: choose one of {', '.join(PACINGS)}")
        if not 1 <= self.spacing_iterations <= ROUNDS:
            raise ValueError(f"spacing_iterations={self.spacing_iterations}: choose from 1 to {ROUNDS}")

    def without(self) -> dict[str, "Recipe"]:
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
class Ends:
    """What both pictures are to the model: clean latents, the noise they come from, and the words."""

    latents: list[Tensor]
    noise: list[Tensor]
    contexts: list[Tensor]


Tick = Callable[[int], None]  # told how many predictions were made


class Morph:
    """Two pictures of one size, which the model takes, and their words; `blend` holds their adapters, None for lora=none."""

    def __init__(
        self, model: StableDiffusion, ddim: Ddim, pictures: list[Picture], blend: Blend | None, inversion_iterations: int = 0
    ):
        if inversion_iterations < 0:
            raise ValueError(f"inversion_iterations={inversion_iterations}: choose 0 or more")
        self.model, self.ddim, self.pictures, self.blend, self.inversion_iterations = model, ddim, pictures, blend, inversion_iterations
        self.known: dict[bool, Ends] = {}
        self.tick: Tick = lambda count: None

    def calls(self, recipe: Recipe, count: int) -> int:
        """How many predictions `film` makes at most, but for the ends'."""
        passes = count + (count - 2) * (recipe.spacing_iterations if recipe.frame_spacing == "even" else 0)
        turns = 1 + (recipe.spacing_iterations if recipe.frame_spacing == "even" else 0)
        return passes * self.ddim.steps + turns * 2 * self.shared(recipe)

    def shared(self, recipe: Recipe) -> int:
        """Steps with the ends' attention."""
        return round(recipe.attention * self.ddim.steps)

    def film(self, recipe: Recipe, count: int, distances: Distances | None) -> Film:
        """`count` frames from the first picture to the second."""
        shares = np.linspace(0, 1, count).tolist()
        seen = dict(zip(shares, self.frames(shares, recipe), strict=True))
        if recipe.frame_spacing == "even":
            for _ in range(recipe.spacing_iterations):
                known = sorted(seen)
                shares = even(known, between([seen[share] for share in known], distances), count)
                missing = [share for share in shares if share not in seen]
                seen |= zip(missing, self.frames(missing, recipe), strict=True)
        frames = [seen[share] for share in shares]
        given = [picture.image for picture in self.pictures]
        if distances is None:
            return Film(given, shares, frames, [], [])
        misses = distances(given, [frames[0], frames[-1]]).tolist()
        return Film(given, shares, frames, between(frames, distances), misses)

    def frames(self, shares: list[float], recipe: Recipe) -> list[Image.Image]:
        return [self.picture(latents) for latents in self.latents(shares, recipe)] if shares else []

    @torch.no_grad()
    def latents(self, shares: list[float], recipe: Recipe) -> list[Tensor]:
        """Of each frame `[1, 4, h, w]`. All frames and both ends take each step together, so only one step's keys are kept."""
        lora = recipe.lora != "none"
        ends = self.ends(lora)
        frames = [slerp(*ends.noise, share) for share in shares]
        if recipe.adain == "noise":
            frames = [adain(frame, *ends.noise, share) for frame, share in zip(frames, shares, strict=True)]
        contexts = [lerp(*ends.contexts, share) for share in shares]
        origins, shared = list(ends.noise), self.shared(recipe)
        attention = SharedAttention(self.model.unet) if shared else None
        try:
            for done, step in enumerate(reversed(range(self.ddim.steps))):
                mixed = done < shared
                for end in (0, 1) if mixed else ():
                    with attention.recording(end):
                        origins[end] = self.denoised(origins[end], ends.contexts[end], step, float(end), lora)
                for i, share in enumerate(shares):
                    with attention.mixing(share) if mixed else nullcontext():
                        frames[i] = self.denoised(frames[i], contexts[i], step, share, lora)
        finally:
            if attention:
                attention.remove()
        if recipe.adain == "result":
            frames = [adain(frame, *ends.latents, share) for frame, share in zip(frames, shares, strict=True)]
        return frames

    def denoised(self, latents: Tensor, context: Tensor, step: int, share: float, lora: bool) -> Tensor:
        """One stride down, with the adapters at `share`."""
        self.wear(share if lora else None)
        return self.ddim.denoised(latents, self.predict(latents, self.ddim.timesteps[step], context), step)

    def wear(self, share: float | None) -> None:
        if self.blend is not None:
            self.blend.off() if share is None else self.blend.at(share)

    def predict(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        self.tick(1)
        compute = self.model.compute
        mixed = torch.autocast(latents.device.type, compute, enabled=compute is not torch.float32)
        with mixed, shared(self.model.unet, latents.shape):
            return self.model.predict(latents, timestep, context).float()

    @torch.no_grad()
    def ends(self, lora: bool) -> Ends:
        """Found once: each picture inverted while its own adapter is active, or with the base alone."""
        if lora not in self.known:
            latents = [self.encoded(picture) for picture in self.pictures]
            self.known[lora] = Ends(latents, *zip(*self.inverted(latents, lora), strict=True))
        return self.known[lora]

    def inverted(self, latents: list[Tensor], lora: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Noise and context of each end."""
        for end, (clean, picture) in enumerate(zip(latents, self.pictures, strict=True)):
            self.wear(float(end) if lora else None)
            if lora:
                self.blend.reading(end)
            context = self.model.condition(self.model.tokenize([picture.caption]).to(clean.device))

            def predict(x: Tensor, timestep: Tensor, context: Tensor = context) -> Tensor:
                return self.predict(x, timestep, context)

            yield self.ddim.invert(predict, clean, self.inversion_iterations), context

    def encoded(self, picture: Picture) -> Tensor:
        from sdft.data.images import pixels

        mean, std = self.model.moments(pixels(picture.image)[None].to(self.model.unet.device))
        return self.model.latents(mean, std, torch.zeros_like(std))

    def picture(self, latents: Tensor) -> Image.Image:
        return self.model.pipeline().image_processor.postprocess(self.model.decode(latents))[0]

    def round_trips(self) -> list[float]:
        """PSNR of each picture through the autoencoder alone: more than that no frame can have."""
        return [psnr(self.picture(self.encoded(picture)), picture.image) for picture in self.pictures]
