"""The denoising objective, one loss per image (Ho et al., 2020; velocity: Salimans & Ho, 2022)."""

from dataclasses import dataclass

from torch import Tensor

ZERO_SNR = 1e-6  # schedulers write 2**-24 for zero


@dataclass
class Objective:
    """Squared error of the predicted noise or velocity, weighted by Min-SNR-gamma (Hang et al., 2023; 0 turns it off).

    `noise_offset` adds a constant per channel to the noise, so that brightness can be learned (Guttenberg, 2023).
    """

    snr_gamma: float = 5.0
    noise_offset: float = 0.0

    def __post_init__(self):
        if self.snr_gamma < 0:
            raise ValueError(f"snr_gamma={self.snr_gamma}: choose 0 (off) or more; 5 is usual")

    def check(self, model) -> None:
        """Refuse what divides by zero: at zero terminal SNR the last step of an epsilon model holds no image to recover."""
        if model.prediction_type == "epsilon" and model.alphas_cumprod[-1] < ZERO_SNR:
            raise ValueError(
                "model.prediction_type=epsilon with zero terminal SNR (rescale_betas_zero_snr): use v_prediction, "
                "whose Min-SNR weight of that step is 0"
            )

    def __call__(
        self, model, latents: Tensor, context: Tensor, noise: Tensor, offset: Tensor, timesteps: Tensor
    ) -> Tensor:
        """Weighted losses `[batch]` of latents and noise `[batch, 4, h, w]`, offsets `[batch, 4, 1, 1]`, timesteps `[batch]`."""
        noise = noise + self.noise_offset * offset
        alpha = model.alphas_cumprod[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        if model.prediction_type == "epsilon":
            target = noise
        else:
            target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        error = model.predict(noisy, timesteps, context).float() - target
        return error.square().mean(dim=(1, 2, 3)) * self.weight(model, timesteps)

    def weight(self, model, timesteps: Tensor) -> Tensor:
        """Min-SNR: min(snr, gamma) / snr for epsilon, min(snr, gamma) / (snr + 1) for velocity, `[batch]`."""
        alpha = model.alphas_cumprod[timesteps]
        snr = alpha / (1 - alpha)
        if not self.snr_gamma:
            return snr.new_ones(snr.shape)
        return snr.clamp(max=self.snr_gamma) / (snr + (model.prediction_type == "v_prediction"))
