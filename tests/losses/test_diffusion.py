"""Closed forms of the loss and its weights, for the Stable Diffusion schedule."""

import pytest
import torch

from sdft.losses.diffusion import DiffusionLoss
from sdft.models.noise_schedulers import change_prediction_type

FULL_MASK = {"mask": torch.ones(1, 1, 8, 8)}
OPTIONAL_DRAWS = {"noise_offset": ["offset"], "input_perturbation": ["perturbation"]}


def compute_snr(model, t):
    alpha = model.noise_process.alphas_cumprod[torch.tensor(t)]
    return (alpha / (1 - alpha)).item()


def test_the_snr_of_the_sd_schedule(tiny):
    model = tiny()
    assert compute_snr(model, 0) == pytest.approx(1175.44, abs=0.01)
    assert compute_snr(model, 100) == pytest.approx(8.4539, abs=1e-3)
    assert compute_snr(model, 200) == pytest.approx(3.06, abs=1e-2)
    assert compute_snr(model, 999) == pytest.approx(0.0047, abs=1e-4)


def test_min_snr_for_epsilon_is_min_snr_gamma_over_snr(tiny):
    model = tiny()
    weight = DiffusionLoss(snr_gamma=5).compute_snr_weights(model, torch.arange(1000))
    assert int(torch.nonzero(weight == 1)[0]) == 147
    assert weight.mean().item() == pytest.approx(0.91657, abs=1e-5)
    assert weight[0].item() == pytest.approx(5 / 1175.44, rel=1e-4)


def test_min_snr_for_v_prediction_is_min_snr_gamma_over_snr_plus_one(tiny):
    model = tiny(prediction_type="v_prediction")
    weight = DiffusionLoss(snr_gamma=5).compute_snr_weights(model, torch.tensor([0, 500]))
    for t, value in zip((0, 500), weight.tolist(), strict=True):
        assert value == pytest.approx(min(compute_snr(model, t), 5) / (compute_snr(model, t) + 1), rel=1e-5)


def test_gamma_zero_is_plain_mse(tiny):
    assert DiffusionLoss(snr_gamma=0).compute_snr_weights(tiny(), torch.tensor([0, 999])).tolist() == [1, 1]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_model_that_predicts_the_target_has_no_loss(tiny, prediction_type):
    model = tiny(prediction_type=prediction_type)
    latents, noise, offset = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 1, 1)
    timesteps = torch.tensor([10, 900])
    from diffusers import DDPMScheduler

    reference, shifted = DDPMScheduler.from_config(model.scheduler.config), noise + 0.1 * offset
    noisy = reference.add_noise(latents, shifted, timesteps)
    target = shifted if prediction_type == "epsilon" else reference.get_velocity(latents, shifted, timesteps)
    inputs = {}
    model.predict = lambda noisy, t, context: inputs.update(noisy=noisy) or target
    draws = {
        "noise": noise,
        "offset": offset,
        "timestep": timesteps,
        "perturbation": torch.randn(2, 4, 8, 8),
    } | FULL_MASK
    losses = DiffusionLoss(snr_gamma=5, noise_offset=0.1)(model, latents, None, draws)
    assert torch.allclose(inputs["noisy"], noisy, atol=1e-5)
    assert torch.allclose(losses, torch.zeros(2), atol=1e-9)


def test_one_loss_per_image(tiny):
    model = tiny()
    model.predict = lambda noisy, t, context: torch.zeros_like(noisy)
    noise = torch.stack([torch.ones(4, 8, 8), 2 * torch.ones(4, 8, 8)])
    draws = {
        "noise": noise,
        "offset": torch.zeros(2, 4, 1, 1),
        "timestep": torch.tensor([5, 5]),
        "perturbation": noise,
    } | FULL_MASK
    losses = DiffusionLoss(snr_gamma=0)(model, noise * 0, None, draws)
    assert losses.tolist() == [1, 4]


@pytest.mark.parametrize(
    ("unmasked_weight", "expected"), [(0.0, [1, 4]), (0.5, [1 * 1.5 / 1.5, (4 + 0.5 * 100) / 1.5])]
)
def test_a_mask_weights_the_error_and_all_images_weigh_the_same(tiny, unmasked_weight, expected):  # pitfall 11
    model = tiny()
    model.predict = lambda noisy, t, context: torch.zeros_like(noisy)
    noise, mask = torch.ones(2, 4, 8, 8), torch.zeros(2, 1, 8, 8)
    noise[1] = 10
    noise[1, :, :, :4] = 2
    mask[0, :, :, 1] = mask[1, :, :, :4] = 1
    draws = {"noise": noise, "offset": torch.zeros(2, 4, 1, 1), "timestep": torch.tensor([5, 5]), "perturbation": noise}
    losses = DiffusionLoss(snr_gamma=0, unmasked_weight=unmasked_weight)(model, noise * 0, None, draws | {"mask": mask})
    assert losses.tolist() == pytest.approx(expected)


def test_unweighted_losses_are_the_losses_before_weighting(tiny):
    model = tiny()
    model.predict = lambda noisy, t, context: torch.zeros_like(noisy)
    noise = torch.randn(3, 4, 8, 8)
    draws = {
        "noise": noise,
        "offset": torch.zeros(3, 4, 1, 1),
        "timestep": torch.tensor([5, 500, 999]),
        "perturbation": noise,
    }
    objective = DiffusionLoss()
    weighted, plain = (
        f(model, noise * 0, None, draws | FULL_MASK) for f in (objective, objective.compute_unweighted_losses)
    )
    assert torch.allclose(weighted, plain * objective.compute_snr_weights(model, draws["timestep"]))


def test_epsilon_with_zero_terminal_snr_raises(tiny):
    model = tiny()
    model.noise_process.alphas_cumprod[-1] = 2**-24
    with pytest.raises(ValueError, match="model.prediction_type=epsilon: .*zero terminal SNR"):
        DiffusionLoss().check(model)


def test_v_prediction_has_zero_weight_at_zero_terminal_snr(tiny):
    model = tiny(prediction_type="v_prediction")
    model.noise_process.alphas_cumprod[-1] = 2**-24
    DiffusionLoss().check(model)
    assert DiffusionLoss().compute_snr_weights(model, torch.tensor([999])).item() == pytest.approx(0, abs=1e-6)


def test_soft_min_snr_and_debiased_in_closed_form(tiny):
    for prediction_type in ("epsilon", "v_prediction"):
        model, v = tiny(prediction_type=prediction_type), prediction_type == "v_prediction"
        for t in (0, 100, 147, 500, 999):
            timestep, s = torch.tensor([t]), compute_snr(model, t)
            soft = DiffusionLoss("soft_min_snr", snr_gamma=5).compute_snr_weights(model, timestep).item()
            debiased = DiffusionLoss("debiased").compute_snr_weights(model, timestep).item()
            assert soft == pytest.approx((s * 5 / (s + 5)) / (s + 1) if v else 5 / (s + 5), rel=1e-5)
            assert debiased == pytest.approx(s**0.5 / (s + 1) if v else s**-0.5, rel=1e-5)


@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr", "debiased"])
def test_weightings_are_equivalent_for_epsilon_and_velocity(tiny, weighting):
    """The velocity error is (snr + 1) / snr times the epsilon error of the same denoised image."""
    epsilon, velocity = tiny(), tiny(prediction_type="v_prediction")
    t = torch.tensor([3, 300, 900])
    ratio = torch.tensor([(compute_snr(epsilon, int(i)) + 1) / compute_snr(epsilon, int(i)) for i in t])
    objective = DiffusionLoss(weighting)
    assert torch.allclose(
        objective.compute_snr_weights(velocity, t) * ratio, objective.compute_snr_weights(epsilon, t), rtol=1e-5
    )


def test_input_perturbation_perturbs_the_input_only(tiny):  # pitfall 10
    model, inputs = tiny(), {}
    latents, noise, extra = (torch.randn(1, 4, 8, 8) for _ in range(3))
    model.predict = lambda noisy, t, context: inputs.update(noisy=noisy) or noise
    draws = {
        "noise": noise,
        "offset": torch.zeros(1, 4, 1, 1),
        "timestep": torch.tensor([500]),
        "perturbation": extra,
    } | FULL_MASK
    losses = DiffusionLoss(input_perturbation=0.1)(model, latents, None, draws)
    alpha = model.noise_process.alphas_cumprod[500]
    assert torch.allclose(
        inputs["noisy"], alpha.sqrt() * latents + (1 - alpha).sqrt() * (noise + 0.1 * extra), atol=1e-6
    )
    assert losses.item() == 0


@pytest.mark.parametrize("options", [{}, {"noise_offset": 0.1}, {"input_perturbation": 0.1}])
def test_the_required_draws_suffice_and_are_all_read(tiny, options):
    loss, read = DiffusionLoss(**options), set()

    class Draws(dict):
        def __getitem__(self, name):
            read.add(name)
            return super().__getitem__(name)

    draws = Draws({name: torch.ones(1, 4, 8, 8) for name in loss.required_draws})
    model, given = tiny(), {"timestep": torch.tensor([5]), "mask": torch.ones(1, 1, 8, 8)}
    model.predict = lambda noisy, *_: noisy
    draws |= given
    loss(model, torch.ones(1, 4, 8, 8), None, draws)
    assert read - given.keys() == loss.required_draws == {"noise", *OPTIONAL_DRAWS.get(next(iter(options), ""), ())}


def test_l1_and_huber():
    error = torch.tensor([-2.0, 0.05, 1.0])
    assert torch.equal(DiffusionLoss(loss="l1").compute_elementwise_loss(error), error.abs())
    huber = DiffusionLoss(loss="huber", huber_delta=0.1).compute_elementwise_loss(error)
    reference = 2 * torch.nn.functional.huber_loss(error, torch.zeros(3), reduction="none", delta=0.1)
    assert torch.allclose(huber, reference, atol=1e-6)


def test_zero_terminal_snr_reaches_training_and_sampling(tiny):
    model = tiny(prediction_type="v_prediction", zero_terminal_snr=True)
    alphas = model.noise_process.alphas_cumprod
    assert alphas[-1] < 1e-6 and alphas[0] == pytest.approx(0.99915, abs=1e-5)
    DiffusionLoss().check(model)
    assert model.build_pipeline().scheduler.alphas_cumprod[-1] < 1e-6
    from diffusers import DDIMScheduler, PNDMScheduler

    assert isinstance(change_prediction_type(PNDMScheduler(), "v_prediction", True), DDIMScheduler)
    assert torch.isfinite(DiffusionLoss().compute_snr_weights(model, torch.arange(1000))).all()
    with pytest.raises(ValueError, match="model.prediction_type=epsilon: .*zero terminal SNR"):
        DiffusionLoss().check(tiny(zero_terminal_snr=True))


BAD = {"weighting": "p2", "loss": "l3", "huber_delta": 0, "snr_gamma": -1, "unmasked_weight": 2}


@pytest.mark.parametrize(("key", "value"), BAD.items())
def test_invalid_options_raise(key, value):
    with pytest.raises(ValueError, match=f"{key}={value}: "):
        DiffusionLoss(**{key: value})


def test_a_weighting_that_never_trains_the_last_timestep_is_named(tiny):
    velocity = {"prediction_type": "v_prediction"}
    model = tiny(**velocity, zero_terminal_snr=True)
    for weighting in ("min_snr", "soft_min_snr", "debiased"):
        (warning,) = DiffusionLoss(weighting).list_warnings(model)
        assert warning.startswith(f"weighting={weighting}: ")
        assert not DiffusionLoss(weighting).list_warnings(tiny())
        assert not DiffusionLoss(weighting).list_warnings(tiny(**velocity))
    assert not DiffusionLoss("none").list_warnings(model)
