"""The noise process agrees with diffusers, and timesteps follow their distribution."""

import pytest
import torch
from diffusers import DDPMScheduler

from sdft.models.noise_process import TimestepSampling, VariancePreservingProcess

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TIMESTEPS = torch.tensor([0, 400, 999])


def build_process(prediction_type="epsilon"):
    scheduler = DDPMScheduler(**CONFIG, prediction_type=prediction_type)
    return scheduler, VariancePreservingProcess(scheduler.config)


def test_noise_and_targets_are_those_of_diffusers():
    latents, noise = torch.randn(2, 3, 4, 8, 8)
    for prediction_type in ("epsilon", "v_prediction"):
        scheduler, process = build_process(prediction_type)
        noisy, target = process.add_noise(latents, noise, TIMESTEPS), process.compute_target(latents, noise, TIMESTEPS)
        expected = noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, TIMESTEPS)
        torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, TIMESTEPS), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(target, expected, atol=1e-6, rtol=1e-6)
        clean, recovered = process.recover_latents_and_noise(target, noisy, TIMESTEPS)
        torch.testing.assert_close(clean, latents, atol=1e-4, rtol=1e-4)  # epsilon divides by 0.07 at the end
        torch.testing.assert_close(recovered, noise, atol=1e-5, rtol=1e-5)


def test_weights_of_the_network_error_equal_those_of_the_x0_error():
    latents, noise, error = torch.randn(3, 3, 4, 8, 8)
    for prediction_type in ("epsilon", "v_prediction"):
        _, process = build_process(prediction_type)
        noisy, target = process.add_noise(latents, noise, TIMESTEPS), process.compute_target(latents, noise, TIMESTEPS)
        clean, _ = process.recover_latents_and_noise(target + error, noisy, TIMESTEPS)
        x0_errors = (clean - latents).square().mean((1, 2, 3))
        weights = process.convert_x0_weights(torch.ones(3), process.compute_snr(TIMESTEPS))
        torch.testing.assert_close(weights * error.square().mean((1, 2, 3)), x0_errors, atol=1e-5, rtol=1e-3)


def test_timesteps_follow_range_and_distribution():
    _, process = build_process()
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    quarter = TimestepSampling(range=[0.0, 0.25])(process, draws)
    assert quarter.min() == 0 and quarter.max() == 249
    fractions = TimestepSampling("logit_normal")(process, draws) / 1000
    expected = torch.randn(20_000, generator=torch.Generator().manual_seed(1)).sigmoid()
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert fractions.quantile(quantile) == pytest.approx(float(expected.quantile(quantile)), abs=0.02)
    assert set(TimestepSampling("logit_normal")(process, torch.tensor([0.0, 1 - 2**-24])).tolist()) <= set(range(1000))
    assert process.find_timesteps(torch.tensor([0.125, 0.375, 0.625, 0.875])).tolist() == [125, 375, 625, 875]


@pytest.mark.parametrize("options", [{"range": [0.5, 0.5]}, {"range": [1.0, 0.0]}, {"distribution": "cubic"}])
def test_invalid_timestep_sampling_is_refused(options):
    with pytest.raises(ValueError, match=f"timestep_sampling.{next(iter(options))}="):
        TimestepSampling(**options)
