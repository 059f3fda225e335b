"""Path lengths of models with a known Jacobian, and the loss term computed from them."""

from types import SimpleNamespace

import pytest
import torch
from test_module import attach_trainer, build_batch, build_module

from sdft.losses.smooth_diffusion import SmoothDiffusionLoss
from sdft.models.stable_diffusion import StableDiffusion
from sdft.training.memory_estimate import estimate_memory
from sdft.training.step_spec import StepSpec

TIMESTEPS = torch.tensor([100, 500])


def build_linear_model(tiny, slopes: torch.Tensor, prediction_type="epsilon"):
    """A model that multiplies its input by one slope per channel."""
    model = tiny(prediction_type=prediction_type)
    model.predict = lambda noisy, timesteps, context: noisy * slopes[None, :, None, None]
    return model


def make_draws(sample_weight=1.0, seed=0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    noise, direction = (torch.randn(2, 4, 8, 8, generator=rng) for _ in range(2))
    weights = torch.full((2,), sample_weight)
    return {"noise": noise, "direction": direction, "timestep": TIMESTEPS, "sample_weight": weights}


def compute_expected_lengths(model, slopes, direction) -> torch.Tensor:
    """|J y| / |y| of a diagonal J: (1 - sigma a) / signal for noise, signal - sigma a for velocity."""
    alpha = model.noise_process.alphas_cumprod[TIMESTEPS][:, None, None, None]
    signal, sigma, a = alpha.sqrt(), (1 - alpha).sqrt(), slopes[None, :, None, None]
    jacobian = (1 - sigma * a) / signal if model.prediction_type == "epsilon" else signal - sigma * a
    return (jacobian * direction).square().sum((1, 2, 3)).sqrt() / direction.square().sum((1, 2, 3)).sqrt()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_path_length_of_a_linear_model_matches_its_jacobian(tiny, prediction_type):
    slopes = torch.tensor([0.1, 0.5, -0.3, 2.0])
    model, draws = build_linear_model(tiny, slopes, prediction_type), make_draws()
    lengths = SmoothDiffusionLoss(1.0).compute_path_lengths(model, torch.randn(2, 4, 8, 8), None, draws)
    assert torch.allclose(lengths, compute_expected_lengths(model, slopes, draws["direction"]), rtol=1e-5)


def test_the_term_and_its_gradient_are_those_of_the_squared_deviation(tiny):
    slope = torch.tensor(0.5, requires_grad=True)
    model, draws, smooth = build_linear_model(tiny, slope.expand(4)), make_draws(), SmoothDiffusionLoss(0.7)
    smooth.load_state_dict({"mean": 0.25, "steps": 3.0})
    term = smooth(model, torch.randn(2, 4, 8, 8), None, draws)
    alpha = model.noise_process.alphas_cumprod[TIMESTEPS]
    length = (1 - (1 - alpha).sqrt() * 0.5) / alpha.sqrt()  # in every direction
    assert torch.allclose(term, 0.7 * (length - 0.25).square(), rtol=1e-5)
    (gradient,) = torch.autograd.grad(term.sum(), slope)
    expected_gradient = (0.7 * 2 * (length - 0.25) * -(1 - alpha).sqrt() / alpha.sqrt()).sum()
    assert gradient.item() == pytest.approx(expected_gradient.item(), rel=1e-4)


def test_the_mean_is_a_running_mean_and_step_one_has_no_loss(tiny):
    smooth, lengths = SmoothDiffusionLoss(1.0, decay=0.5), []
    for step, a in enumerate([0.0, 0.5, -1.0, 0.2]):
        slopes, draws = torch.full((4,), a), make_draws(seed=step)
        model = build_linear_model(tiny, slopes)
        term = smooth(model, torch.zeros(2, 4, 8, 8), None, draws)
        assert bool(term.any()) == (step > 0)
        lengths.append(compute_expected_lengths(model, slopes, draws["direction"]).mean().item())
        smooth.update_mean(lambda value: value)
    mean = lengths[0]
    for length in lengths[1:]:
        mean += 0.5 * (length - mean)
    assert smooth.state_dict() == pytest.approx({"mean": mean, "steps": 4.0}, rel=1e-5)


def test_the_mean_is_independent_of_micro_batches_and_ranks(tiny):
    """Two ranks with two micro-batches each, the last of which lacks one sample."""
    slopes, batches = torch.tensor([0.1, 0.5, -0.3, 2.0]), [make_draws(seed=seed) for seed in range(4)]
    model = build_linear_model(tiny, slopes)
    lengths = torch.cat([compute_expected_lengths(model, slopes, draws["direction"]) for draws in batches])[:7]
    batches[3] = {key: value[:1] for key, value in batches[3].items()}
    ranks = [SmoothDiffusionLoss(1.0), SmoothDiffusionLoss(1.0)]
    for index, draws in enumerate(batches):
        size = len(draws["noise"])
        draws["sample_weight"] = torch.full((size,), 4 * size / 7)
        ranks[index % 2](model, torch.zeros(size, 4, 8, 8), None, draws)
    mean = sum(rank.length_sum / rank.count for rank in ranks) / 2
    ranks[0].update_mean(lambda value: mean)
    assert ranks[0].state_dict()["mean"] == pytest.approx(lengths.mean().item(), rel=1e-5)


def test_nan_does_not_change_the_mean():
    smooth = SmoothDiffusionLoss(1.0)
    smooth.load_state_dict({"mean": 2.0, "steps": 5.0})
    smooth.length_sum, smooth.count = torch.tensor(float("nan")), 1
    smooth.update_mean(lambda value: value)
    assert smooth.state_dict() == {"mean": 2.0, "steps": 5.0}


def make_batch(model) -> dict:
    tensors = build_batch(model)
    return tensors | {"direction": torch.randn_like(tensors["noise"])}


def test_gradient_checkpointing_does_not_change_its_gradients(tiny):
    gradients = []
    for checkpointing in (False, True):
        module = build_module(tiny(), checkpointing=checkpointing, smoothness=SmoothDiffusionLoss(10.0))
        module.smoothness.load_state_dict({"mean": 0.1, "steps": 1.0})
        tensors = make_batch(module.model)
        unregularized = module.objective(module.model, *module.prepare_inputs(tensors))
        assert (module.compute_losses(tensors) - unregularized).min() > 0
        module.training_step(tensors, 0)["loss"].backward()
        gradients.append({name: p.grad for name, p in module.get_trainable_parameters().items()})
    plain = build_module(tiny())
    plain.training_step(make_batch(plain.model), 0)["loss"].backward()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5, rtol=1e-4), name
    assert any(
        not torch.allclose(gradients[0][n], p.grad, atol=1e-4) for n, p in plain.get_trainable_parameters().items()
    )


def test_it_is_updated_once_per_step_and_saved_in_the_checkpoint(tiny):
    module = attach_trainer(build_module(tiny(), smoothness=SmoothDiffusionLoss(1.0)))
    module._trainer.precision_plugin = SimpleNamespace(scaler=None)
    module._trainer.strategy = SimpleNamespace(reduce=lambda value, reduce_op: value)
    for _ in range(2):
        module.training_step(make_batch(module.model), 0)
    module.on_before_optimizer_step(None)
    state = module.smoothness.state_dict()
    assert state["steps"] == 1 and state["mean"] > 0 and isinstance(module.model, StableDiffusion)
    module.grad_norm = module.skipped_steps = module.last_skipped_step = torch.zeros(())
    checkpoint = {"state_dict": {}}
    module.on_save_checkpoint(checkpoint)
    checkpoint.pop("state_dict")
    resumed = build_module(tiny(), smoothness=SmoothDiffusionLoss(1.0))
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.smoothness.state_dict() == state


@pytest.mark.slow
def test_memory_estimation_does_not_change_its_state(tiny):
    estimates = []
    for smooth in (None, SmoothDiffusionLoss(1.0)):
        module = build_module(tiny(), smoothness=smooth)
        sample = {key: value[:1] for key, value in make_batch(module.model).items()}
        estimates.append(estimate_memory(module, StepSpec(sample, 2, 1, torch.device("cpu"))).activations)
    assert estimates[1] > estimates[0] and module.smoothness.count == 0 and not module.smoothness.length_sum


def test_invalid_options_raise():
    with pytest.raises(ValueError, match="smooth_diffusion_weight=-1: "):
        SmoothDiffusionLoss(-1)
    with pytest.raises(ValueError, match="smoothness.decay=0: "):
        SmoothDiffusionLoss(1, 0)
