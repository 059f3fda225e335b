"""DDIM sampling and inversion, for epsilon and v-prediction, on the timesteps of diffusers."""

import pytest
import torch

from sdft.apps.morph.ddim_inversion import DDIM
from sdft.models.noise_process import compute_alphas_cumprod

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
KINDS = ("epsilon", "v_prediction")


def build_ddim(kind: str, steps: int) -> DDIM:
    return DDIM(compute_alphas_cumprod(CONFIG), kind, steps)


def gaussian_predictor(kind: str, deviation: float = 0.5):
    """Output of a perfect UNet for normally distributed latents with this standard deviation."""
    levels = compute_alphas_cumprod(CONFIG)

    def predict(x, timestep):
        alpha = levels[timestep]
        noise = (1 - alpha).sqrt() * x / (alpha * deviation**2 + 1 - alpha)
        clean = (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        return noise if kind == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

    return predict


def round_trip_error(kind: str, steps: int, inversion_iterations: int = 0) -> float:
    """The largest error of inversion followed by sampling."""
    path, predict = build_ddim(kind, steps), gaussian_predictor(kind)
    clean = 0.5 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    restored = path.sample(predict, path.invert(predict, clean, inversion_iterations))
    return float((restored - clean).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_after_inversion_restores_the_latents_better_with_more_steps(kind):
    few, some, many = (round_trip_error(kind, steps) for steps in (10, 50, 200))
    assert many < some < few
    assert some < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_inversion_iterations_make_inversion_exact(kind):
    plain, refined, converged = (round_trip_error(kind, 10, inversion_iterations=n) for n in (0, 1, 20))
    assert converged < 1e-5 < refined < plain


@pytest.mark.parametrize("kind", KINDS)
def test_epsilon_and_velocity_give_the_same_inversion(kind):
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = [build_ddim(k, 500).invert(gaussian_predictor(k), clean) for k in KINDS]
    torch.testing.assert_close(*noise, atol=0.02, rtol=0)
    assert noise[0].std() == pytest.approx(2 * float(clean.std()), rel=0.1)  # latents have standard deviation 1/2


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_matches_diffusers(kind):
    from diffusers import DDIMScheduler

    reference = DDIMScheduler(**CONFIG, prediction_type=kind, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    reference.set_timesteps(20)
    path, draw = build_ddim(kind, 20), torch.Generator().manual_seed(1)
    assert reference.timesteps.tolist() == path.timesteps.flip(0).tolist()
    latents = torch.randn(1, 4, 8, 8, generator=draw)
    for step, timestep in zip(reversed(range(20)), reference.timesteps, strict=True):
        output = torch.randn(1, 4, 8, 8, generator=draw)
        expected = reference.step(output, timestep, latents).prev_sample
        latents = path.denoise_step(latents, output, step)
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(path.denoise_step(path.invert_step(latents, output, step), output, step), latents)


@pytest.mark.parametrize("steps", [1, 501])
def test_steps_out_of_range_raise_value_error(steps):
    with pytest.raises(ValueError, match=f"ddim_steps={steps}: "):
        build_ddim("epsilon", steps)
