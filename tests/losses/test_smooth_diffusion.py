"""How much the image changes with the noisy latent, on models whose Jacobian is known, and what is added to the loss for it."""

from types import SimpleNamespace

import pytest
import torch
from test_module import attached, batch, build

from sdft.losses.smooth_diffusion import SmoothDiffusionLoss
from sdft.models.stable_diffusion import StableDiffusion
from sdft.training.memory_estimate import StepSpec, estimate_memory

TIMES = torch.tensor([100, 500])


def linear(tiny, slopes: torch.Tensor, prediction_type="epsilon"):
    """A model whose output is its input, times a number per channel."""
    model = tiny(prediction_type=prediction_type)
    model.predict = lambda noisy, timesteps, context: noisy * slopes[None, :, None, None]
    return model


def draws(share=1.0, seed=0) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    noise, direction = (torch.randn(2, 4, 8, 8, generator=chance) for _ in range(2))
    return {"noise": noise, "direction": direction, "timestep": TIMES, "sample_weight": torch.full((2,), share)}


def expected(model, slopes, direction) -> torch.Tensor:
    """|J y| / |y| of a diagonal J: (1 - sigma a) / signal for noise, signal - sigma a for velocity."""
    alpha = model.alphas_cumprod[TIMES][:, None, None, None]
    signal, sigma, a = alpha.sqrt(), (1 - alpha).sqrt(), slopes[None, :, None, None]
    jacobian = (1 - sigma * a) / signal if model.prediction_type == "epsilon" else signal - sigma * a
    return (jacobian * direction).square().sum((1, 2, 3)).sqrt() / direction.square().sum((1, 2, 3)).sqrt()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_length_of_a_linear_model_is_that_of_its_jacobian(tiny, prediction_type):
    slopes = torch.tensor([0.1, 0.5, -0.3, 2.0])
    model, given = linear(tiny, slopes, prediction_type), draws()
    lengths = SmoothDiffusionLoss(1.0).compute_path_lengths(model, torch.randn(2, 4, 8, 8), None, given)
    assert torch.allclose(lengths, expected(model, slopes, given["direction"]), rtol=1e-5)


def test_the_term_is_the_squared_distance_from_the_mean_and_so_is_its_gradient(tiny):
    slope = torch.tensor(0.5, requires_grad=True)
    model, given, smooth = linear(tiny, slope.expand(4)), draws(), SmoothDiffusionLoss(0.7)
    smooth.load_state({"mean": 0.25, "steps": 3.0})
    term = smooth(model, torch.randn(2, 4, 8, 8), None, given)
    alpha = model.alphas_cumprod[TIMES]
    length = (1 - (1 - alpha).sqrt() * 0.5) / alpha.sqrt()  # in every direction
    assert torch.allclose(term, 0.7 * (length - 0.25).square(), rtol=1e-5)
    (found,) = torch.autograd.grad(term.sum(), slope)
    known = (0.7 * 2 * (length - 0.25) * -(1 - alpha).sqrt() / alpha.sqrt()).sum()
    assert found.item() == pytest.approx(known.item(), rel=1e-4)


def test_the_mean_runs_and_the_first_step_has_none(tiny):
    smooth, lengths = SmoothDiffusionLoss(1.0, decay=0.5), []
    for step, a in enumerate([0.0, 0.5, -1.0, 0.2]):
        slopes, given = torch.full((4,), a), draws(seed=step)
        model = linear(tiny, slopes)
        term = smooth(model, torch.zeros(2, 4, 8, 8), None, given)
        assert bool(term.any()) == (step > 0)
        lengths.append(expected(model, slopes, given["direction"]).mean().item())
        smooth.update_mean(lambda number: number)
    mean = lengths[0]
    for length in lengths[1:]:
        mean += 0.5 * (length - mean)
    assert smooth.state() == pytest.approx({"mean": mean, "steps": 4.0}, rel=1e-5)


def test_micro_batches_and_processes_do_not_change_the_mean(tiny):
    """Two micro-batches, of which the second is one sample short, in each of two processes."""
    slopes, given = torch.tensor([0.1, 0.5, -0.3, 2.0]), [draws(seed=seed) for seed in range(4)]
    model = linear(tiny, slopes)
    lengths = torch.cat([expected(model, slopes, one["direction"]) for one in given])[:7]
    given[3] = {key: value[:1] for key, value in given[3].items()}
    processes = [SmoothDiffusionLoss(1.0), SmoothDiffusionLoss(1.0)]
    for turn, one in enumerate(given):
        size = len(one["noise"])
        one["sample_weight"] = torch.full((size,), 4 * size / 7)
        processes[turn % 2](model, torch.zeros(size, 4, 8, 8), None, one)
    mean = sum(process.length_sum / process.count for process in processes) / 2
    processes[0].update_mean(lambda number: mean)
    assert processes[0].state()["mean"] == pytest.approx(lengths.mean().item(), rel=1e-5)


def test_what_is_no_number_does_not_spoil_the_mean():
    smooth = SmoothDiffusionLoss(1.0)
    smooth.load_state({"mean": 2.0, "steps": 5.0})
    smooth.length_sum, smooth.count = torch.tensor(float("nan")), 1
    smooth.update_mean(lambda number: number)
    assert smooth.state() == {"mean": 2.0, "steps": 5.0}


def term_batch(model) -> dict:
    given = batch(model)
    return given | {"direction": torch.randn_like(given["noise"])}


def test_gradient_checkpointing_changes_no_gradient_of_it(tiny):
    gradients = []
    for checkpointing in (False, True):
        module = build(tiny(), checkpointing=checkpointing, smoothness=SmoothDiffusionLoss(10.0))
        module.smoothness.load_state({"mean": 0.1, "steps": 1.0})
        given = term_batch(module.model)
        assert (
            module.compute_losses(given) - module.objective(module.model, *module.encode_batch(given), given)
        ).min() > 0
        module.training_step(given, 0)["loss"].backward()
        gradients.append({name: p.grad for name, p in module.get_trainable_parameters().items()})
    plain = build(tiny())
    plain.training_step(term_batch(plain.model), 0)["loss"].backward()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5, rtol=1e-4), name
    assert any(
        not torch.allclose(gradients[0][n], p.grad, atol=1e-4) for n, p in plain.get_trainable_parameters().items()
    )


def test_it_is_advanced_once_a_step_and_kept_in_the_checkpoint(tiny):
    module = attached(build(tiny(), smoothness=SmoothDiffusionLoss(1.0)))
    module._trainer.precision_plugin = SimpleNamespace(scaler=None)
    module._trainer.strategy = SimpleNamespace(reduce=lambda number, reduce_op: number)
    for _ in range(2):
        module.training_step(term_batch(module.model), 0)
    module.on_before_optimizer_step(None)
    state = module.smoothness.state()
    assert state["steps"] == 1 and state["mean"] > 0 and isinstance(module.model, StableDiffusion)
    module.grad_norm = module.skipped_steps = module.last_skipped_step = torch.zeros(())
    checkpoint = {"state_dict": {}}
    module.on_save_checkpoint(checkpoint)
    checkpoint.pop("state_dict")
    other = build(tiny(), smoothness=SmoothDiffusionLoss(1.0))
    other.on_load_checkpoint(checkpoint)
    assert other.smoothness.state() == state


def test_its_memory_is_estimated_without_touching_it(tiny):
    needed = []
    for smooth in (None, SmoothDiffusionLoss(1.0)):
        module = build(tiny(), smoothness=smooth)
        one = {key: value[:1] for key, value in term_batch(module.model).items()}
        needed.append(estimate_memory(module, StepSpec(one, 2, 1, torch.device("cpu"))).activations)
    assert needed[1] > needed[0] and module.smoothness.count == 0 and not module.smoothness.length_sum


def test_bad_words_are_refused():
    with pytest.raises(ValueError, match=r"smooth_diffusion_weight=-1: choose 0 \(off\) or more; 1 is usual"):
        SmoothDiffusionLoss(-1)
    with pytest.raises(ValueError, match=r"smoothness.decay=0: choose more than 0"):
        SmoothDiffusionLoss(1, 0)
