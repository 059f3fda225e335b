"""The noise process of a model: how latents become noise, what the network predicts, and at which timesteps it trains."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

PREDICTION_TYPES = ("epsilon", "v_prediction")
TIMESTEP_DISTRIBUTIONS = ("uniform", "logit_normal")
MIN_TERMINAL_SNR = 1e-6  # schedulers use 2**-24 for zero
MIN_TIMESTEP_RANGE = 0.01  # fraction of the noise schedule: ten timesteps


class VariancePreservingProcess(nn.Module):
    """x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε (Ho et al., 2020); the network predicts ε or the velocity (Salimans & Ho, 2022).

    Tensors of latents are `[batch, channels, h, w]`, timesteps `[batch]` integers from 0 (data) to `num_timesteps` - 1 (noise).
    """

    def __init__(self, scheduler_config):
        """The noise levels and the prediction type of a diffusers scheduler; `ValueError` for an unsupported type."""
        super().__init__()
        self.prediction_type = scheduler_config.get("prediction_type", "epsilon")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"model.prediction_type={self.prediction_type}: choose one of {', '.join(PREDICTION_TYPES)}"
            )
        self.register_buffer("alphas_cumprod", compute_alphas_cumprod(scheduler_config), persistent=False)

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def has_zero_terminal_snr(self) -> bool:
        return bool(self.alphas_cumprod[-1] < MIN_TERMINAL_SNR)

    def check_terminal_snr(self) -> None:
        """`ValueError` for epsilon prediction at zero terminal SNR, where recovering the latents divides by zero."""
        if self.prediction_type == "epsilon" and self.has_zero_terminal_snr:
            raise ValueError(
                "model.prediction_type=epsilon: not supported with zero terminal SNR (rescale_betas_zero_snr); use v_prediction"
            )

    def find_timesteps(self, fractions: Tensor) -> Tensor:
        """Timesteps at fractions `[batch]` (0..1, excluding 1) of the noise schedule."""
        return (fractions * self.num_timesteps).long()

    def compute_scales(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Scales `[batch, 1, 1, 1]` of latents and of noise."""
        alpha = self.alphas_cumprod[timesteps][:, None, None, None]
        return alpha.sqrt(), (1 - alpha).sqrt()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents at the noise level of each timestep."""
        signal, sigma = self.compute_scales(timesteps)
        return signal * latents + sigma * noise

    def compute_target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should predict: the noise, or the velocity sqrt(ᾱ) ε - sqrt(1 - ᾱ) x_0."""
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self.compute_scales(timesteps)
        return signal * noise - sigma * latents

    def recover_latents_and_noise(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The clean latents and the noise that the network's `output` implies for `noisy`."""
        signal, sigma = self.compute_scales(timesteps)
        if self.prediction_type == "epsilon":
            return (noisy - sigma * output) / signal, output
        return signal * noisy - sigma * output, signal * output + sigma * noisy

    def compute_snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratios `[batch]`, ᾱ / (1 - ᾱ)."""
        alpha = self.alphas_cumprod[timesteps]
        return alpha / (1 - alpha)

    def convert_x0_weights(self, weights: Tensor, snr: Tensor) -> Tensor:
        """Weights `[batch]` of the network's squared error from those of x_0: divided by snr, or by snr + 1 for velocity."""
        return weights / (snr + 1 if self.prediction_type == "v_prediction" else snr)


@dataclass
class TimestepSampling:
    """The distribution of training timesteps; `range` bounds them as fractions of the noise schedule.

    `logit_normal` favours the middle (Esser et al., 2024).
    """

    distribution: str = "uniform"
    range: list[float] = field(default_factory=lambda: [0.0, 1.0])

    def __post_init__(self):
        if self.distribution not in TIMESTEP_DISTRIBUTIONS:
            raise ValueError(
                f"timestep_sampling.distribution={self.distribution}: choose {' or '.join(TIMESTEP_DISTRIBUTIONS)}"
            )
        bounds = list(self.range)
        if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] - MIN_TIMESTEP_RANGE <= 1 - MIN_TIMESTEP_RANGE:
            raise ValueError(
                f"timestep_sampling.range={bounds}: choose two increasing fractions, at least {MIN_TIMESTEP_RANGE} apart, "
                "such as [0.0,1.0]"
            )

    def __call__(self, process: VariancePreservingProcess, draws: Tensor) -> Tensor:
        """Timesteps `[batch]` of uniform draws `[batch]`, 0..1, through the inverse of the distribution."""
        fractions = torch.special.ndtri(draws).sigmoid() if self.distribution == "logit_normal" else draws
        first, last = (round(edge * process.num_timesteps) for edge in self.range)
        scaled = fractions * (last - first)
        return (first + scaled if first else scaled).long().clamp(max=last - 1)


def compute_alphas_cumprod(scheduler_config) -> Tensor:
    """Cumulative product of 1 - beta `[timesteps]` as in DDPM training, whatever the checkpoint's scheduler."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(scheduler_config).alphas_cumprod.clone()
