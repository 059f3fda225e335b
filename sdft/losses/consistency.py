"""Latent consistency distillation: predict the end of the sampling path from any point on it (Luo et al., 2023).

With LCM-LoRA the student is the model, and the teacher the same without its adapter: no weights are duplicated.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sdft.losses.diffusion import check_unmasked_weight, compute_masked_mean

SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # as fixed in the LCM scheduler


@dataclass
class LatentConsistencyLoss:
    """The teacher takes a guided DDIM step; the pseudo-Huber distance of the student's predictions at both ends is the loss.

    `solver_steps` is the number of steps of the whole path; each sample draws a guidance scale from `guidance_range`. `teacher`
    maps (model, noisy latents, timesteps, conditioning) to the teacher's output; `DiffusionModule` sets it to that of the method.
    """

    guidance_range: list[float] = field(default_factory=lambda: [4.0, 16.0])
    solver_steps: int = 50
    huber_c: float = 0.001
    unmasked_weight: float = 0.0
    teacher: Callable[..., Tensor] | None = field(default=None, init=False)
    is_distillation: ClassVar[bool] = True
    required_draws: ClassVar[set[str]] = {"noise", "guidance"}

    def __post_init__(self):
        scales = list(self.guidance_range)
        if len(scales) != 2 or not 1 <= scales[0] <= scales[1]:
            raise ValueError(f"guidance_range={scales}: choose [LOW,HIGH] with 1 <= LOW <= HIGH, such as [4.0,16.0]")
        if not 2 <= self.solver_steps <= 1000:
            raise ValueError(f"solver_steps={self.solver_steps}: choose from 2 to 1000; 50 is usual")
        if self.huber_c <= 0:
            raise ValueError(f"objective.huber_c={self.huber_c}: choose more than 0; 0.001 is usual")
        check_unmasked_weight(self.unmasked_weight)

    def check(self, model) -> None:
        model.noise_process.check_terminal_snr()

    def list_warnings(self, model) -> list[str]:
        return []

    def __call__(self, model, latents: Tensor, conditioning, draws: dict[str, Tensor]) -> Tensor:
        """Losses `[batch]` of latents `[batch, 4, h, w]`.

        `draws` holds normal `noise` `[batch, 4, h, w]`, `timestep` and uniform `guidance` `[batch]`, `mask` `[batch, 1, h, w]`.
        """
        late, early = self.get_solver_timesteps(model, draws["timestep"])
        noisy = model.noise_process.add_noise(latents, draws["noise"], late)
        prediction = predict_clean_latents(model, noisy, late, conditioning)
        with torch.no_grad():
            less_noisy = self.take_teacher_step(model, noisy, late, early, conditioning, draws["guidance"])
            target = predict_clean_latents(model, less_noisy, early, conditioning)
        distances = ((prediction - target).square() + self.huber_c**2).sqrt() - self.huber_c
        return compute_masked_mean(distances, draws["mask"], self.unmasked_weight)

    compute_unweighted_losses = __call__  # all timesteps weigh the same

    def get_solver_timesteps(self, model, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end of the solver step that contains each timestep; with 50 steps the starts are 19, 39, … 999."""
        size = model.noise_process.num_timesteps // self.solver_steps
        late = (timesteps // size).clamp(max=self.solver_steps - 1) * size + size - 1
        return late, (late - size).clamp(min=0)

    @torch.no_grad()
    def take_teacher_step(
        self, model, noisy: Tensor, late: Tensor, early: Tensor, conditioning, guidance: Tensor
    ) -> Tensor:
        """The result `[batch, 4, h, w]` of the teacher's guided DDIM step from `noisy`."""
        pair = model.append_unconditional(conditioning)
        both = self.teacher(model, noisy.repeat(2, 1, 1, 1), late.repeat(2), pair).float()
        conditional, unconditional = both.chunk(2)
        low, high = self.guidance_range
        scale = (low + guidance * (high - low))[:, None, None, None]
        output = unconditional + scale * (conditional - unconditional)
        clean, noise = model.noise_process.recover_latents_and_noise(output, noisy, late)
        return model.noise_process.add_noise(clean, noise, early)


def predict_clean_latents(model, noisy: Tensor, timesteps: Tensor, conditioning) -> Tensor:
    """The consistency function `[batch, 4, h, w]`: the input at timestep 0, the predicted image at late timesteps."""
    output = model.predict(noisy, timesteps, conditioning).float()
    clean, _ = model.noise_process.recover_latents_and_noise(output, noisy, timesteps)
    scaled = TIMESTEP_SCALING * timesteps[:, None, None, None]
    skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    return skip * noisy + scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5 * clean
