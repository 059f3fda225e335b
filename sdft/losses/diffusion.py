"""The denoising objective with one loss per image (Ho et al., 2020; velocity: Salimans & Ho, 2022)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

WEIGHTINGS = ("none", "min_snr", "soft_min_snr", "debiased")
LOSSES = ("mse", "l1", "huber")
MIN_WEIGHT = 1e-3  # of a timestep that is trained


@dataclass
class DiffusionLoss:
    """The distance of prediction and target, averaged per image and weighted by the signal-to-noise ratio of its timestep.

    `noise_offset` adds a constant per channel to the noise, to train brightness (Guttenberg, 2023).
    `input_perturbation` adds noise to the input but not to the target (Ning et al., 2023).
    Where `mask` is 0 the distance has weight `unmasked_weight`; the mean is normalized, so that all images weigh the same.
    `huber_delta` is where the Huber loss turns from squared to linear. `snr_gamma=0` turns weighting off.
    """

    weighting: str = "min_snr"
    snr_gamma: float = 5.0
    loss: str = "mse"
    huber_delta: float = 0.1
    noise_offset: float = 0.0
    input_perturbation: float = 0.0
    unmasked_weight: float = 0.0
    is_distillation: ClassVar[bool] = False  # see `Method`

    def __post_init__(self):
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting={self.weighting}: choose one of {', '.join(WEIGHTINGS)}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss}: choose one of {', '.join(LOSSES)}")
        if self.snr_gamma < 0:
            raise ValueError(f"snr_gamma={self.snr_gamma}: choose 0 (off) or more; 5 is usual")
        if self.huber_delta <= 0:
            raise ValueError(f"huber_delta={self.huber_delta}: choose more than 0; 0.1 is usual")
        for key in ("noise_offset", "input_perturbation"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}={getattr(self, key)}: choose from 0 (off) to 1; 0.1 is usual")
        check_unmasked_weight(self.unmasked_weight)

    @property
    def required_draws(self) -> set[str]:
        """Names of the random draws that the loss reads."""
        optional = {"offset": self.noise_offset, "perturbation": self.input_perturbation}
        return {"noise", *(name for name, strength in optional.items() if strength)}

    def check(self, model) -> None:
        model.noise_process.check_terminal_snr()

    def list_warnings(self, model) -> list[str]:
        """A warning if the last timestep has no weight: the model's output for pure noise decides the brightness of images."""
        process = model.noise_process
        last = process.alphas_cumprod.new_tensor([process.num_timesteps - 1]).long()
        if self.compute_snr_weights(model, last) > MIN_WEIGHT:
            return []
        return [
            f"weighting={self.weighting}: with zero terminal SNR the last timestep, which sampling starts from, has weight 0 and "
            "is not trained; weighting=none trains it"
        ]

    def __call__(self, model, latents: Tensor, conditioning, draws: dict[str, Tensor]) -> Tensor:
        """Weighted losses `[batch]` of latents `[batch, 4, h, w]`; `conditioning` is handed to the model as it is.

        `draws` holds the `required_draws`, standard normal: `noise` and `perturbation` `[batch, 4, h, w]`, `offset`
        `[batch, 4, 1, 1]`; and `timestep` `[batch]` and `mask` `[batch, 1, h, w]`, 0..1.
        """
        return self.compute_unweighted_losses(model, latents, conditioning, draws) * self.compute_snr_weights(
            model, draws["timestep"]
        )

    def compute_unweighted_losses(self, model, latents: Tensor, conditioning, draws: dict[str, Tensor]) -> Tensor:
        """Losses `[batch]` before weighting."""
        process, timesteps = model.noise_process, draws["timestep"]
        noise = add_scaled(draws["noise"], self.noise_offset, draws, "offset")
        input_noise = add_scaled(noise, self.input_perturbation, draws, "perturbation")
        noisy = process.add_noise(latents, input_noise, timesteps)
        error = model.predict(noisy, timesteps, conditioning).float() - process.compute_target(
            latents, noise, timesteps
        )
        return compute_masked_mean(self.compute_elementwise_loss(error), draws["mask"], self.unmasked_weight)

    def compute_elementwise_loss(self, error: Tensor) -> Tensor:
        """error², |error|, or Huber: error² within delta, 2 delta |error| - delta² outside (twice the usual, to match MSE)."""
        if self.loss == "mse":
            return error.square()
        if self.loss == "l1":
            return error.abs()
        delta = self.huber_delta
        return error.square().where(error.abs() <= delta, 2 * delta * error.abs() - delta**2)

    def compute_snr_weights(self, model, timesteps: Tensor) -> Tensor:
        """Timestep weights `[batch]`, listed for an epsilon loss; a velocity loss is (snr + 1) / snr times as large.

        min_snr       min(snr, gamma) / snr         Hang et al., 2023
        soft_min_snr  gamma / (snr + gamma)         Crowson et al., 2024
        debiased      1 / sqrt(snr)                 Yu et al., 2023
        """
        snr = model.noise_process.compute_snr(timesteps)
        if self.weighting == "none" or not self.snr_gamma:
            return snr.new_ones(snr.shape)
        x0_weight = {  # weight of the x0 loss: times 1 / snr for epsilon, 1 / (snr + 1) for velocity
            "min_snr": snr.clamp(max=self.snr_gamma),
            "soft_min_snr": snr * self.snr_gamma / (snr + self.snr_gamma),
            "debiased": snr.sqrt(),
        }[self.weighting]
        return model.noise_process.convert_x0_weights(x0_weight, snr)


def add_scaled(noise: Tensor, strength: float, draws: dict[str, Tensor], name: str) -> Tensor:
    return noise + strength * draws[name] if strength else noise


def check_unmasked_weight(unmasked_weight: float) -> None:
    if not 0 <= unmasked_weight <= 1:
        raise ValueError(f"unmasked_weight={unmasked_weight}: choose from 0 (masked-out regions are ignored) to 1")


def compute_masked_mean(distances: Tensor, mask: Tensor, unmasked_weight: float) -> Tensor:
    """Weighted means `[batch]` of distances `[batch, 4, h, w]`: 1 inside `mask` `[batch, 1, h, w]`, `unmasked_weight` outside."""
    if unmasked_weight:
        mask = unmasked_weight + (1 - unmasked_weight) * mask
    return (distances.mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1e-6)


def weight_losses(losses: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Losses `[batch]` times the weights in the batch, which leaves out those that are 1 for all of its samples."""
    for name in ("weight", "sample_weight"):
        losses = losses * batch[name] if name in batch else losses
    return losses
