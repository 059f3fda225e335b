"""DDIM as a path through noise levels that is walked both ways (Song et al., 2021), whatever sampler a checkpoint ships."""

from collections.abc import Callable

import torch
from torch import Tensor

from sdft.models.stable_diffusion import StableDiffusion

MAX_DDIM_STEPS = 500  # steps; of a thousand levels each is then the second

PredictFunction = Callable[[Tensor, Tensor], Tensor]  # latents and timestep `[]` to noise or velocity


class DDIM:
    """`steps` equal strides over the timesteps, from the second one on; the clean end is the first level of the schedule, not 1.

    One stride down is linear in the latents and in what the UNet says of them: x' = p x + q u. The way up solves it for x,
    where u is asked at the only latents that are known, those below.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction_type: str, steps: int):
        if not 2 <= steps <= MAX_DDIM_STEPS:
            raise ValueError(f"ddim_steps={steps}: choose from 2 to {MAX_DDIM_STEPS}; 50 is usual")
        stride = len(alphas_cumprod) // steps
        self.steps, self.velocity = steps, prediction_type == "v_prediction"
        self.timesteps = torch.arange(steps, device=alphas_cumprod.device) * stride + 1
        self.levels = torch.cat([alphas_cumprod[:1], alphas_cumprod[self.timesteps]]).double().tolist()

    @classmethod
    def from_model(cls, model: StableDiffusion, steps: int) -> "DDIM":
        return cls(model.alphas_cumprod, model.prediction_type, steps)

    def factors(self, step: int) -> tuple[float, float]:
        """p and q of the stride from level `step` + 1 to `step`."""
        there, here = self.levels[step], self.levels[step + 1]
        signal, sigma, less = here**0.5, (1 - here) ** 0.5, (1 - there) ** 0.5
        if self.velocity:  # x0 = signal x - sigma v, noise = sigma x + signal v
            return there**0.5 * signal + less * sigma, less * signal - there**0.5 * sigma
        ratio = (there / here) ** 0.5
        return ratio, less - ratio * sigma

    def denoise_step(self, latents: Tensor, output: Tensor, step: int) -> Tensor:
        p, q = self.factors(step)
        return p * latents + q * output

    def invert_step(self, latents: Tensor, output: Tensor, step: int) -> Tensor:
        p, q = self.factors(step)
        return (latents - q * output) / p

    def invert(self, predict: PredictFunction, latents: Tensor, inversion_iterations: int = 0) -> Tensor:
        """Clean latents to the noise that they come from; `inversion_iterations` asks again at the latents found, so often each stride."""
        for step, timestep in enumerate(self.timesteps):
            found = latents
            for _ in range(1 + inversion_iterations):
                found = self.invert_step(latents, predict(found, timestep), step)
            latents = found
        return latents

    def sample(self, predict: PredictFunction, latents: Tensor) -> Tensor:
        """Noise to clean latents."""
        for step in reversed(range(self.steps)):
            latents = self.denoise_step(latents, predict(latents, self.timesteps[step]), step)
        return latents
