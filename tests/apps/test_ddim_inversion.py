"""DDIM walked both ways, for noise and velocity, on the levels that other samplers of this kind use."""

import pytest
import torch

from sdft.apps.morph.ddim_inversion import DDIM
from sdft.models.stable_diffusion import compute_alphas_cumprod

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
KINDS = ("epsilon", "v_prediction")


def ddim(kind: str, steps: int) -> DDIM:
    return DDIM(compute_alphas_cumprod(CONFIG), kind, steps)


def gaussian(kind: str, deviation: float = 0.5):
    """What a perfect UNet says of pictures that are normal with this deviation."""
    levels = compute_alphas_cumprod(CONFIG)

    def predict(x, timestep):
        alpha = levels[timestep]
        noise = (1 - alpha).sqrt() * x / (alpha * deviation**2 + 1 - alpha)
        clean = (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        return noise if kind == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

    return predict


def trip(kind: str, steps: int, inversion_iterations: int = 0) -> float:
    """The largest error of there and back."""
    path, clean = ddim(kind, steps), 0.5 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return float(
        (path.sample(gaussian(kind), path.invert(gaussian(kind), clean, inversion_iterations)) - clean).abs().max()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_after_inversion_gives_the_picture_back_and_more_steps_nearer(kind):
    few, some, many = (trip(kind, steps) for steps in (10, 50, 200))
    assert many < some < few
    assert some < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_an_inversion_that_asks_again_is_exact(kind):
    assert trip(kind, 10, inversion_iterations=20) < 1e-5 < trip(kind, 10, inversion_iterations=1) < trip(kind, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_and_velocity_walk_the_same_path(kind):
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = [ddim(k, 500).invert(gaussian(k), clean) for k in KINDS]
    torch.testing.assert_close(*noise, atol=0.02, rtol=0)
    assert noise[0].std() == pytest.approx(
        2 * float(clean.std()), rel=0.1
    )  # of deviation 1/2 each is two deviations out


@pytest.mark.parametrize("kind", KINDS)
def test_each_stride_is_the_one_of_the_published_sampler(kind):
    from diffusers import DDIMScheduler

    reference = DDIMScheduler(**CONFIG, prediction_type=kind, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    reference.set_timesteps(20)
    path, draw = ddim(kind, 20), torch.Generator().manual_seed(1)
    assert reference.timesteps.tolist() == path.timesteps.flip(0).tolist()
    latents = torch.randn(1, 4, 8, 8, generator=draw)
    for step, timestep in zip(reversed(range(20)), reference.timesteps, strict=True):
        output = torch.randn(1, 4, 8, 8, generator=draw)
        expected = reference.step(output, timestep, latents).prev_sample
        latents = path.denoise_step(latents, output, step)
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(path.denoise_step(path.invert_step(latents, output, step), output, step), latents)


@pytest.mark.parametrize("steps", [1, 501])
def test_steps_that_there_are_not_are_refused(steps):
    with pytest.raises(ValueError, match=f"ddim_steps={steps}: choose from 2 to 500"):
        ddim("epsilon", steps)
