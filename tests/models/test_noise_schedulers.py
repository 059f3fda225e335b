"""Schedulers by name keep the model's noise levels and prediction type."""

import numpy as np
import pytest
import torch

from sdft.models.noise_schedulers import SCHEDULER_TITLES, SCHEDULERS, build_scheduler, find_scheduler_name
from sdft.models.sampling import Sampling


def sample(model, **options) -> list[np.ndarray]:
    images = Sampling(steps=3, guidance_scale=3.0, **options)(model, ["a cat"], 32)
    return [np.asarray(image, np.int16) for image in images]


def test_every_scheduler_samples_and_only_the_shipped_one_gives_the_default_images(tiny):
    model = tiny(weights="pretrained")
    default = sample(model)
    assert (
        find_scheduler_name(dict(model.scheduler.config, _class_name=type(model.scheduler).__name__))
        == "dpmpp_2m_karras"
    )
    for name in SCHEDULERS:
        images = sample(model, scheduler=name)
        assert all(20 < image.std() < 125 for image in images), name
        is_default = all(np.array_equal(a, b) for a, b in zip(default, images, strict=True))
        assert is_default == (name == "dpmpp_2m_karras"), name
    assert set(SCHEDULER_TITLES) == set(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_training_settings_are_preserved_and_latents_are_not_clipped(name, tiny):
    scheduler = build_scheduler(name, tiny(prediction_type="v_prediction").scheduler)
    assert scheduler.config.prediction_type == "v_prediction"
    assert (scheduler.config.beta_start, scheduler.config.beta_schedule) == (0.00085, "scaled_linear")
    assert not scheduler.config.get("clip_sample", False) and scheduler.config.get("steps_offset", 1) == 1
    assert find_scheduler_name(dict(scheduler.config, _class_name=type(scheduler).__name__)) == name


def test_zero_terminal_snr_is_preserved_or_rejected(tiny):
    shipped = tiny(prediction_type="v_prediction", zero_terminal_snr=True).scheduler
    for name in ("ddim", "euler", "dpmpp_2m", "unipc"):
        scheduler = build_scheduler(name, shipped)
        scheduler.set_timesteps(10)
        assert scheduler.config.rescale_betas_zero_snr and int(scheduler.timesteps[0]) == 999
        assert float(scheduler.alphas_cumprod[-1]) < 1e-6
    for name in ("pndm", "heun", "deis"):
        with pytest.raises(ValueError, match=f"scheduler={name}: .* ddim, "):
            build_scheduler(name, shipped)


def test_v_prediction_recovers_the_clean_latents(tiny):
    """One DDIM step from pure noise, by the formula of Salimans and Ho (2022)."""
    scheduler = build_scheduler("ddim", tiny(prediction_type="v_prediction").scheduler)
    scheduler.set_timesteps(1)
    t, (x, v) = int(scheduler.timesteps[0]), torch.randn(2, 1, 4, 4, 4)
    a = scheduler.alphas_cumprod[t]
    clean = scheduler.step(v, t, x).pred_original_sample
    torch.testing.assert_close(clean, a.sqrt() * x - (1 - a).sqrt() * v)


def test_stochastic_schedulers_draw_noise_per_image(tiny):
    model = tiny()
    for name in ("euler_a", "dpmpp_2m_sde"):
        single, batched = (sample(model, scheduler=name, images=2, batch_size=size) for size in (1, 2))
        assert max(np.abs(a - b).max() for a, b in zip(single, batched, strict=True)) <= 2


def test_unknown_names_are_rejected_with_the_list():
    with pytest.raises(ValueError, match=r"sampling.scheduler=nope: .*ddim, ddpm, .* null"):
        Sampling(scheduler="nope")
