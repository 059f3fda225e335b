"""Smooth latents: the image changes by the same amount wherever the noisy latent changes (Smooth Diffusion, Guo et al., 2023).

As StyleGAN2's path length (Karras et al., 2020): the length of a Jacobian times a random direction is drawn to its running mean.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdft.losses.diffusion import add_noise


@dataclass
class SmoothDiffusionLoss:
    """`weight` times (length - mean)². The mean is that of the steps before, so that a step can be split in any way.

    After step n it moves by max(`rate`, 1 / n) towards the step's own; in the first step there is none, and no loss.
    """

    weight: float = 0.0
    decay: float = 0.01

    def __post_init__(self):
        if self.weight < 0:
            raise ValueError(f"smooth_diffusion_weight={self.weight}: choose 0 (off) or more; 1 is usual")
        if not 0 < self.decay <= 1:
            raise ValueError(f"smoothness.decay={self.decay}: choose more than 0, and at most 1; 0.01 is usual")
        self.mean, self.steps, self.length_sum, self.count = torch.zeros(()), torch.zeros(()), torch.zeros(()), 0

    def __call__(self, model, latents: Tensor, context: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """What is added to the losses `[batch]`; `draws` holds also a normal `direction` `[batch, 4, h, w]` and `share`."""
        lengths = self.compute_path_lengths(model, latents, context, draws)
        self.mean, self.steps = self.mean.to(lengths), self.steps.to(lengths)
        self.length_sum = self.length_sum.to(lengths) + (lengths.detach() * draws["sample_weight"]).mean()
        self.count += 1
        return self.weight * (self.steps > 0) * (lengths - self.mean).square()

    def compute_path_lengths(self, model, latents: Tensor, context: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """|Jᵀ y| / |y| `[batch]` of the predicted image's Jacobian J by the noisy latent, and a direction y."""
        noisy = add_noise(model, latents, draws["noise"], draws["timestep"]).detach().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            predicted = model.predict(noisy, draws["timestep"], context).float()
            clean, _ = model.predict_latents_and_noise(predicted, noisy, draws["timestep"])
            (slopes,) = torch.autograd.grad((clean * draws["direction"]).sum(), noisy, create_graph=True)
        return (sum_squares(slopes) + 1e-12).sqrt() / sum_squares(draws["direction"]).sqrt()

    def update_mean(self, mean_of_all) -> None:
        """After all micro-batches of a step; `mean_of_all` takes a number of this process to the mean over processes."""
        now = mean_of_all(self.length_sum / self.count)
        counts = now.isfinite()  # or a step that is held back would spoil the mean for ever
        self.steps = self.steps + counts
        rate = (1 / self.steps.clamp(min=1)).clamp(min=self.decay)
        self.mean = torch.where(counts, self.mean + rate * (now - self.mean), self.mean)
        self.length_sum, self.count = torch.zeros_like(self.length_sum), 0

    def state(self) -> dict[str, float]:
        return {"mean": float(self.mean), "steps": float(self.steps)}

    def load_state(self, state: dict[str, float]) -> None:
        self.mean, self.steps = torch.tensor(state["mean"]), torch.tensor(state["steps"])


def sum_squares(tensor: Tensor) -> Tensor:
    return tensor.square().sum((1, 2, 3))
