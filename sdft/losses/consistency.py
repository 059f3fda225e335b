"""Latent consistency distillation: from every point of its path the model finds the path's end at once (Luo et al., 2023).

The teacher is the model with its adapter off, the student the same with it on: no weights are held twice (LCM-LoRA).
"""

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from sdft.losses.diffusion import add_noise, check_terminal_snr, check_unmasked_weight, compute_masked_mean

SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # which the LCM scheduler takes for granted


@dataclass
class LatentConsistencyLoss:
    """The teacher goes one step of DDIM along its guided path; the student's images of both ends shall agree.

    `solver_steps` cut the path; `guidance_range` are scales, of which each sample has one. The distance is pseudo-Huber's.
    """

    guidance_range: list[float] = field(default_factory=lambda: [4.0, 16.0])
    solver_steps: int = 50
    huber_c: float = 0.001
    unmasked_weight: float = 0.0
    is_distillation: ClassVar[bool] = True

    def __post_init__(self):
        scales = list(self.guidance_range)
        if len(scales) != 2 or not 1 <= scales[0] <= scales[1]:
            raise ValueError(f"guidance_range={scales}: choose two scales of 1 or more that do not fall, as [4.0,16.0]")
        if not 2 <= self.solver_steps <= 1000:
            raise ValueError(f"solver_steps={self.solver_steps}: choose from 2 to 1000; 50 is usual")
        if self.huber_c <= 0:
            raise ValueError(f"objective.huber_c={self.huber_c}: choose more than 0; 0.001 is usual")
        check_unmasked_weight(self.unmasked_weight)

    def check(self, model) -> None:
        check_terminal_snr(model)

    def __call__(self, model, latents: Tensor, context: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Losses `[batch]` of latents `[batch, 4, h, w]`.

        `draws` holds normal `noise` `[batch, 4, h, w]`, `timestep` and uniform `guidance` `[batch]`, `mask` `[batch, 1, h, w]`.
        """
        late, early = self.get_solver_timesteps(model, draws["timestep"])
        noisy = add_noise(model, latents, draws["noise"], late)
        found = predict_clean_latents(
            model, noisy, late, context
        )  # first: autocast keeps its casts of weights, and these have gradients
        with torch.no_grad():
            before = self.take_teacher_step(model, noisy, late, early, context, draws["guidance"])
            target = predict_clean_latents(model, before, early, context)
        distances = ((found - target).square() + self.huber_c**2).sqrt() - self.huber_c
        return compute_masked_mean(distances, draws["mask"], self.unmasked_weight)

    compute_unweighted_losses = __call__  # no timestep weighs more

    def get_solver_timesteps(self, model, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The solver's step in which each timestep lies: where it starts, 19, 39, … 999 of 50 steps, and where it leads."""
        size = len(model.alphas_cumprod) // self.solver_steps
        late = (timesteps // size).clamp(max=self.solver_steps - 1) * size + size - 1
        return late, (late - size).clamp(min=0)

    @torch.no_grad()
    def take_teacher_step(
        self, model, noisy: Tensor, late: Tensor, early: Tensor, context: Tensor, guidance: Tensor
    ) -> Tensor:
        """Where the teacher's guided step of DDIM leads from `noisy`, `[batch, 4, h, w]`."""
        nothing = model.unconditional_embedding.to(context).expand_as(context)
        with disable_adapter(model.unet):
            both = model.predict(noisy.repeat(2, 1, 1, 1), late.repeat(2), torch.cat([context, nothing])).float()
        told, untold = both.chunk(2)
        low, high = self.guidance_range
        scale = (low + guidance * (high - low))[:, None, None, None]
        clean, noise = model.predict_latents_and_noise(untold + scale * (told - untold), noisy, late)
        return add_noise(model, clean, noise, early)


def predict_clean_latents(model, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
    """The path's end, as the consistency model sees it: at timestep 0 what it is given, further on what it predicts."""
    clean, _ = model.predict_latents_and_noise(model.predict(noisy, timesteps, context).float(), noisy, timesteps)
    scaled = TIMESTEP_SCALING * timesteps[:, None, None, None]
    skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    return skip * noisy + scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5 * clean


@contextmanager
def disable_adapter(module: nn.Module):
    """The weights below its adapter alone. peft's own switch would also say anew what learns, in the middle of a step."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
