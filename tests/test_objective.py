"""Closed forms of the loss and its weights (numbers of the SD schedule)."""

import pytest
import torch

from sdft.objective import Objective


def snr(model, t):
    alpha = model.alphas_cumprod[torch.tensor(t)]
    return (alpha / (1 - alpha)).item()


def test_the_snr_of_the_sd_schedule(tiny):
    model = tiny()
    assert snr(model, 0) == pytest.approx(1175.44, abs=0.01)
    assert snr(model, 100) == pytest.approx(8.4539, abs=1e-3)
    assert snr(model, 200) == pytest.approx(3.06, abs=1e-2)
    assert snr(model, 999) == pytest.approx(0.0047, abs=1e-4)


def test_min_snr_for_epsilon_is_min_snr_gamma_over_snr(tiny):
    model = tiny()
    weight = Objective(snr_gamma=5).weight(model, torch.arange(1000))
    assert int(torch.nonzero(weight == 1)[0]) == 147
    assert weight.mean().item() == pytest.approx(0.91657, abs=1e-5)
    assert weight[0].item() == pytest.approx(5 / 1175.44, rel=1e-4)


def test_min_snr_for_v_prediction_is_min_snr_gamma_over_snr_plus_one(tiny):
    model = tiny(prediction_type="v_prediction")
    weight = Objective(snr_gamma=5).weight(model, torch.tensor([0, 500]))
    for t, given in zip((0, 500), weight.tolist(), strict=True):
        assert given == pytest.approx(min(snr(model, t), 5) / (snr(model, t) + 1), rel=1e-5)


def test_gamma_zero_is_plain_mse(tiny):
    assert Objective(snr_gamma=0).weight(tiny(), torch.tensor([0, 999])).tolist() == [1, 1]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_model_that_predicts_the_target_has_no_loss(tiny, prediction_type):
    model = tiny(prediction_type=prediction_type)
    latents, noise, offset = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 1, 1)
    timesteps = torch.tensor([10, 900])
    from diffusers import DDPMScheduler

    reference, shifted = DDPMScheduler.from_config(model.scheduler.config), noise + 0.1 * offset
    noisy = reference.add_noise(latents, shifted, timesteps)
    target = shifted if prediction_type == "epsilon" else reference.get_velocity(latents, shifted, timesteps)
    seen = {}
    model.predict = lambda given, t, context: seen.update(noisy=given) or target
    losses = Objective(snr_gamma=5, noise_offset=0.1)(model, latents, None, noise, offset, timesteps)
    assert torch.allclose(seen["noisy"], noisy, atol=1e-5)
    assert torch.allclose(losses, torch.zeros(2), atol=1e-9)


def test_one_loss_per_image(tiny):
    model = tiny()
    model.predict = lambda noisy, t, context: torch.zeros_like(noisy)
    noise = torch.stack([torch.ones(4, 8, 8), 2 * torch.ones(4, 8, 8)])
    losses = Objective(snr_gamma=0)(model, noise * 0, None, noise, torch.zeros(2, 4, 1, 1), torch.tensor([5, 5]))
    assert losses.tolist() == [1, 4]


def test_epsilon_with_zero_terminal_snr_is_refused_by_name(tiny):
    model = tiny()
    model.alphas_cumprod[-1] = 2**-24
    with pytest.raises(ValueError, match="epsilon with zero terminal SNR"):
        Objective().check(model)


def test_v_prediction_gives_the_terminal_step_of_zero_snr_no_weight(tiny):
    model = tiny(prediction_type="v_prediction")
    model.alphas_cumprod[-1] = 2**-24
    Objective().check(model)
    assert Objective().weight(model, torch.tensor([999])).item() == pytest.approx(0, abs=1e-6)


def test_a_negative_gamma_is_refused():
    with pytest.raises(ValueError, match="snr_gamma=-1"):
        Objective(snr_gamma=-1)
