"""A sampler by name draws with the model's own noise levels and prediction type."""

import numpy as np
import pytest
import torch

from sdft.models.noise_schedulers import SCHEDULER_TITLES, SCHEDULERS, build_scheduler, find_scheduler_name
from sdft.models.sampling import Sampling


def drawn(model, **words) -> list[np.ndarray]:
    return [np.asarray(p, np.int16) for p in Sampling(steps=3, guidance_scale=3.0, **words)(model, ["a cat"], 32)]


def test_every_name_draws_and_none_but_the_shipped_one_as_the_shipped_one(tiny):
    model = tiny(weights="pretrained")
    own = drawn(model)
    assert (
        find_scheduler_name(dict(model.scheduler.config, _class_name=type(model.scheduler).__name__))
        == "dpmpp_2m_karras"
    )
    for name in SCHEDULERS:
        pictures = drawn(model, scheduler=name)
        assert all(20 < picture.std() < 125 for picture in pictures), name
        same = all(np.array_equal(a, b) for a, b in zip(own, pictures, strict=True))
        assert same == (name == "dpmpp_2m_karras"), name
    assert set(SCHEDULER_TITLES) == set(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_was_trained_is_kept_and_latents_are_not_clipped(name, tiny):
    made = build_scheduler(name, tiny(prediction_type="v_prediction").scheduler)
    assert made.config.prediction_type == "v_prediction"
    assert (made.config.beta_start, made.config.beta_schedule) == (0.00085, "scaled_linear")
    assert not made.config.get("clip_sample", False) and made.config.get("steps_offset", 1) == 1
    assert find_scheduler_name(dict(made.config, _class_name=type(made).__name__)) == name


def test_zero_terminal_snr_is_kept_or_refused(tiny):
    shipped = tiny(prediction_type="v_prediction", zero_terminal_snr=True).scheduler
    for name in ("ddim", "euler", "dpmpp_2m", "unipc"):
        made = build_scheduler(name, shipped)
        made.set_timesteps(10)
        assert made.config.rescale_betas_zero_snr and int(made.timesteps[0]) == 999
        assert float(made.alphas_cumprod[-1]) < 1e-6
    for name in ("pndm", "heun", "deis"):
        with pytest.raises(ValueError, match=f"scheduler={name}: cannot start from the pure noise .* choose ddim, "):
            build_scheduler(name, shipped)


def test_velocity_is_drawn_as_noise_is(tiny):
    """One step of DDIM from pure noise, by the formula of Salimans and Ho (2022)."""
    made = build_scheduler("ddim", tiny(prediction_type="v_prediction").scheduler)
    made.set_timesteps(1)
    t, (x, v) = int(made.timesteps[0]), torch.randn(2, 1, 4, 4, 4)
    a = made.alphas_cumprod[t]
    clean = made.step(v, t, x).pred_original_sample
    torch.testing.assert_close(clean, a.sqrt() * x - (1 - a).sqrt() * v)


def test_each_image_has_its_own_noise_on_the_way_too(tiny):
    model = tiny()
    for name in ("euler_a", "dpmpp_2m_sde"):
        alone, together = (drawn(model, scheduler=name, images=2, batch_size=size) for size in (1, 2))
        assert max(np.abs(a - b).max() for a, b in zip(alone, together, strict=True)) <= 2


def test_unknown_names_are_refused_with_the_list():
    with pytest.raises(ValueError, match=r"sampling.scheduler=nope: choose one of ddim, ddpm, .* or null"):
        Sampling(scheduler="nope")
