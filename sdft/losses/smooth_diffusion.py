"""Smooth Diffusion: the same change of the noisy latent changes the image by the same amount everywhere (Guo et al., 2023).

Like StyleGAN2's path length regularization (Karras et al., 2020): penalize the deviation of |Jᵀ y| from its running mean.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass
class SmoothDiffusionLoss:
    """`weight` * (length - mean)², with the running mean of the previous steps (independent of micro-batching).

    Step n updates the mean with rate max(`decay`, 1 / n); the loss is zero on step 1.
    """

    weight: float = 0.0
    decay: float = 0.01
    required_draws: ClassVar[set[str]] = {"noise", "direction"}

    def __post_init__(self):
        if self.weight < 0:
            raise ValueError(f"smooth_diffusion_weight={self.weight}: choose 0 (off) or more; 1 is usual")
        if not 0 < self.decay <= 1:
            raise ValueError(f"smoothness.decay={self.decay}: choose more than 0, and at most 1; 0.01 is usual")
        self.mean, self.steps, self.length_sum, self.count = torch.zeros(()), torch.zeros(()), torch.zeros(()), 0

    def __call__(self, model, latents: Tensor, conditioning, draws: dict[str, Tensor]) -> Tensor:
        """The terms to add to the losses `[batch]`.

        `draws` also holds a normal `direction` `[batch, 4, h, w]`, and `sample_weight` `[batch]` if it is not 1.
        """
        lengths = self.compute_path_lengths(model, latents, conditioning, draws)
        self.mean, self.steps = self.mean.to(lengths), self.steps.to(lengths)
        weighted = lengths.detach() * draws.get("sample_weight", 1)
        self.length_sum = self.length_sum.to(lengths) + weighted.mean()
        self.count += 1
        return self.weight * (self.steps > 0) * (lengths - self.mean).square()

    def compute_path_lengths(self, model, latents: Tensor, conditioning, draws: dict[str, Tensor]) -> Tensor:
        """|Jᵀ y| / |y| `[batch]`, with the Jacobian J of the predicted image in the noisy latent and a direction y."""
        process, timesteps = model.noise_process, draws["timestep"]
        noisy = process.add_noise(latents, draws["noise"], timesteps).detach().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # fused kernels have no second derivative
            output = model.predict(noisy, timesteps, conditioning).float()
            clean, _ = process.recover_latents_and_noise(output, noisy, timesteps)
            (gradients,) = torch.autograd.grad((clean * draws["direction"]).sum(), noisy, create_graph=True)
        return (sum_squares(gradients) + 1e-12).sqrt() / sum_squares(draws["direction"]).sqrt()

    def update_mean(self, reduce_mean) -> None:
        """Call after all micro-batches of a step; `reduce_mean` averages a value over all ranks."""
        step_mean = reduce_mean(self.length_sum / self.count)
        is_valid = step_mean.isfinite()  # a NaN/Inf step must not change the mean
        self.steps = self.steps + is_valid
        rate = (1 / self.steps.clamp(min=1)).clamp(min=self.decay)
        self.mean = torch.where(is_valid, self.mean + rate * (step_mean - self.mean), self.mean)
        self.length_sum, self.count = torch.zeros_like(self.length_sum), 0

    def state_dict(self) -> dict[str, float]:
        return {"mean": float(self.mean), "steps": float(self.steps)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.mean, self.steps = torch.tensor(state["mean"]), torch.tensor(state["steps"])


def sum_squares(tensor: Tensor) -> Tensor:
    return tensor.square().sum((1, 2, 3))
