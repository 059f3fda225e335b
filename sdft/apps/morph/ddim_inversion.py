"""DDIM sampling and inversion (Song et al., 2021), independent of the scheduler that a checkpoint ships."""

from collections.abc import Callable

import torch
from torch import Tensor

from sdft.models.diffusion_model import DiffusionModel

MAX_DDIM_STEPS = 500  # steps; every second one of 1000 timesteps

PredictFunction = Callable[[Tensor, Tensor], Tensor]  # latents and timestep `[]` to noise or velocity


class DDIM:
    """`steps` equal strides over the timesteps, starting at timestep 1; the clean end has alpha_cumprod[0], not 1.

    A denoising step is linear in the latents x and the UNet output u: x' = p x + q u. Inversion solves it for x, with u
    predicted at x', as x is unknown.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction_type: str, steps: int):
        if not 2 <= steps <= MAX_DDIM_STEPS:
            raise ValueError(f"ddim_steps={steps}: choose from 2 to {MAX_DDIM_STEPS}; 50 is usual")
        stride = len(alphas_cumprod) // steps
        self.steps, self.velocity = steps, prediction_type == "v_prediction"
        self.timesteps = torch.arange(steps, device=alphas_cumprod.device) * stride + 1
        self.levels = torch.cat([alphas_cumprod[:1], alphas_cumprod[self.timesteps]]).double().tolist()

    @classmethod
    def from_model(cls, model: DiffusionModel, steps: int) -> "DDIM":
        return cls(model.noise_process.alphas_cumprod, model.prediction_type, steps)

    def compute_factors(self, step: int) -> tuple[float, float]:
        """p and q of the stride from level `step` + 1 to `step`."""
        target, source = self.levels[step], self.levels[step + 1]
        signal, sigma, target_sigma = source**0.5, (1 - source) ** 0.5, (1 - target) ** 0.5
        if self.velocity:  # x0 = signal x - sigma v, noise = sigma x + signal v
            return target**0.5 * signal + target_sigma * sigma, target_sigma * signal - target**0.5 * sigma
        ratio = (target / source) ** 0.5
        return ratio, target_sigma - ratio * sigma

    def denoise_step(self, latents: Tensor, output: Tensor, step: int) -> Tensor:
        p, q = self.compute_factors(step)
        return p * latents + q * output

    def invert_step(self, latents: Tensor, output: Tensor, step: int) -> Tensor:
        p, q = self.compute_factors(step)
        return (latents - q * output) / p

    def invert(self, predict: PredictFunction, latents: Tensor, inversion_iterations: int = 0) -> Tensor:
        """Clean latents to noise; `inversion_iterations` fixed-point iterations refine each step."""
        for step, timestep in enumerate(self.timesteps):
            noisier = latents
            for _ in range(1 + inversion_iterations):
                noisier = self.invert_step(latents, predict(noisier, timestep), step)
            latents = noisier
        return latents

    def sample(self, predict: PredictFunction, latents: Tensor) -> Tensor:
        """Noise to clean latents."""
        for step in reversed(range(self.steps)):
            latents = self.denoise_step(latents, predict(latents, self.timesteps[step]), step)
        return latents
