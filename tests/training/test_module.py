"""The training step: trainable parameters, precision, gradient clipping, learning rates and checkpointing."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdft.losses.diffusion import DiffusionLoss
from sdft.methods.full import FullFineTuning
from sdft.methods.lora import LoRA
from sdft.models.precision import set_precision
from sdft.training.lr_schedule import LRSchedule
from sdft.training.module import DiffusionModule


def build_module(model, method=None, **options):
    lr = {"unet": 1e-4, "clip_l": 5e-5}
    optimizer = partial(torch.optim.AdamW, lr=1e-4)
    objective = options.pop("objective", None) or DiffusionLoss()
    return DiffusionModule(model, method or LoRA(4, 4), objective, optimizer, LRSchedule("constant"), lr, **options)


def build_batch(model, size=2, seed=0):
    torch.manual_seed(seed)
    shape = (size, *model.latent_shape(32))
    return {
        "pixels": torch.rand(size, 3, 32, 32) * 2 - 1,
        "ids": model.tokenize(["a handwritten two in neon light"] * size),
        "posterior": torch.randn(shape),
        "noise": torch.randn(shape),
        "perturbation": torch.randn(shape),
        "offset": torch.randn(size, shape[1], 1, 1),
        "timestep_draw": torch.rand(size),
        "weight": torch.ones(size),
        "sample_weight": torch.ones(size),
        "mask": torch.ones(size, 1, *shape[2:]),
        "geometry": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * size),
    }


def compute_gradient_norm(module) -> float:
    return (
        torch.stack([p.grad.norm() for p in module.get_trainable_parameters().values() if p.grad is not None])
        .norm()
        .item()
    )


def build_optimizer(module):
    return torch.optim.AdamW([{"params": [p for p in module.parameters() if p.requires_grad]}])


def attach_trainer(module):
    """Attach a fake trainer at step 0."""
    module._trainer = SimpleNamespace(global_step=0, precision_plugin=None)
    return module


def test_gradients_are_clipped_and_the_logged_norm_is_before_clipping(tiny):  # pitfall 1
    module = attach_trainer(build_module(tiny(), max_grad_norm=1e-3))
    module.training_step(build_batch(module.model), 0)["loss"].backward()
    before = compute_gradient_norm(module)
    module.configure_gradient_clipping(build_optimizer(module))
    assert before > 1e-3
    assert module.grad_norm.item() == pytest.approx(before, rel=1e-5)
    assert compute_gradient_norm(module) == pytest.approx(1e-3, rel=1e-3)


def test_max_grad_norm_zero_disables_clipping(tiny):
    module = attach_trainer(build_module(tiny(), max_grad_norm=0))
    module.training_step(build_batch(module.model), 0)["loss"].backward()
    before = compute_gradient_norm(module)
    module.configure_gradient_clipping(build_optimizer(module))
    assert compute_gradient_norm(module) == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_trainable_parameters_are_fp32_in_every_precision(tiny, compute_dtype):  # pitfalls 2 and 7
    module = build_module(tiny(), compute_dtype=compute_dtype)
    assert {p.dtype for p in module.get_trainable_parameters().values()} == {torch.float32}
    assert {p.dtype for p in module.model.unet.parameters()} == {compute_dtype}
    assert module.model.vae.dtype == torch.float32


def test_the_vae_computes_in_fp32_in_every_precision(tiny):  # pitfall 7
    model, dtypes = tiny(), set()
    set_precision(model, torch.bfloat16)
    model.vae.encoder.conv_in.register_forward_hook(lambda m, i, out: dtypes.add(out.dtype))
    model.vae.decoder.conv_in.register_forward_hook(lambda m, i, out: dtypes.add(out.dtype))
    model.decode(model.moments(torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16))[0].bfloat16())
    assert dtypes == {torch.float32}


def test_gaussian_weights_change_at_the_usual_learning_rate(tiny):  # pitfall 2
    module = build_module(tiny(), compute_dtype=torch.bfloat16)
    a = {n: p for n, p in module.get_trainable_parameters().items() if ".lora_A." in n}
    for p in module.get_trainable_parameters().values():
        p.grad = torch.randn_like(p)
    before = {n: p.detach().clone() for n, p in a.items()}
    torch.optim.AdamW(a.values(), lr=1e-4).step()
    changed = torch.cat([(p != before[n]).flatten() for n, p in a.items()]).float().mean()
    assert changed > 0.99


def test_the_seed_determines_the_adapter(tiny):  # pitfall 5
    weights = []
    for global_seed in (1, 2):
        model = tiny()
        torch.manual_seed(global_seed)
        weights.append(build_module(model, seed=7).get_trainable_parameters())
    assert all(torch.equal(p, weights[1][n]) for n, p in weights[0].items())


def test_frozen_modules_stay_in_eval_mode(tiny):  # pitfall 6
    module = build_module(tiny(), LoRA(4, 4, text_encoder=False))
    model = module.model
    assert not any(m.training for part in (model.vae, model.clip_l) for m in part.modules())
    train_mode = {name for name, m in model.unet.named_modules() if m.training}
    trainable = {n for n, m in model.unet.named_modules() if any(p.requires_grad for p in m.parameters())}
    assert trainable <= train_mode and all(".lora_dropout" in name for name in train_mode - trainable)


def test_no_trainable_parameters_is_an_error(tiny):  # pitfall 3
    class FrozenMethod(FullFineTuning):
        def prepare(self, model):
            pass

    with pytest.raises(ValueError, match="FrozenMethod: "):
        build_module(tiny(), FrozenMethod())


def test_each_part_has_its_own_learning_rate(tiny):
    module = build_module(tiny())
    module._trainer = type("Trainer", (), {"max_steps": 10})()
    (optimizer,), _ = module.configure_optimizers()
    assert {g["name"]: g["lr"] for g in optimizer.param_groups} == {"unet": 1e-4, "clip_l": 5e-5}


def test_losses_do_not_depend_on_the_batch(tiny):
    module = build_module(tiny())
    batch = build_batch(module.model, 4)
    single = torch.cat([module.compute_losses({k: v[i : i + 1] for k, v in batch.items()}) for i in range(4)])
    assert torch.allclose(module.compute_losses(batch), single, atol=1e-5)


def test_full_fine_tuning_trains_only_the_unet(tiny):
    module = build_module(tiny(), FullFineTuning())
    assert set(module.get_trainable_parameters()) == {f"unet.{n}" for n, _ in module.model.unet.named_parameters()}


def test_a_skipped_fp16_step_does_not_advance_the_schedule(tiny):  # pitfall 7
    module, optimizer = build_module(tiny()), torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = LRSchedule("linear")(optimizer, 10)
    scaler = torch.amp.GradScaler("cpu")
    plugin = type("Plugin", (), {"scaler": scaler})()
    module._trainer = type("Trainer", (), {"precision_plugin": plugin})()
    for gradient, steps in ((float("inf"), 0), (1.0, 1)):
        p = optimizer.param_groups[0]["params"][0]
        scaler.scale((p * gradient).sum()).backward()
        module.on_before_optimizer_step(optimizer)
        scaler.step(optimizer)
        scaler.update()
        module.lr_scheduler_step(scheduler, None)
        optimizer.zero_grad()
        assert scheduler.last_epoch == steps


@pytest.mark.parametrize("family", ["tiny", "small_xl"])
@pytest.mark.parametrize("method", [LoRA(4, 4, text_encoder=True), FullFineTuning(text_encoder=True)])
def test_gradient_checkpointing_changes_no_gradient(request, family, method):
    build, gradients = request.getfixturevalue(family), []
    for checkpointing in (False, True):
        module = build_module(build(), method, checkpointing=checkpointing)
        module.training_step(build_batch(module.model), 0)["loss"].backward()
        gradients.append({name: p.grad for name, p in module.get_trainable_parameters().items()})
    assert module.model.unet.is_gradient_checkpointing
    assert not [name for name, gradient in gradients[0].items() if gradient is None]
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_each_learning_rate_has_its_own_parameter_group(tiny):
    module = build_module(tiny(), LoRA(4, 4, loraplus_lr_ratio=16.0))
    module.__dict__["_trainer"] = type("Trainer", (), {"max_steps": 3})()
    (optimizer,), _ = module.configure_optimizers()
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"unet": 1e-4, "unet_x16": 16e-4, "clip_l": 5e-5, "clip_l_x16": 80e-5})
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(module.get_trainable_parameters())


class Float64Detector(TorchDispatchMode):
    """Collects the operations that return float64 tensors."""

    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(isinstance(t, torch.Tensor) and t.dtype == torch.float64 for t in tree_leaves(result)):
            self.operations.add(str(func))
        return result


@pytest.mark.parametrize("objective", [{}, {"snr_gamma": 5.0, "noise_offset": 0.1}])
def test_a_training_step_has_no_float64_tensors_which_apple_gpus_lack(tiny, objective):
    model = tiny()
    module = attach_trainer(build_module(model, objective=DiffusionLoss(**objective)))
    optimizer, batch = build_optimizer(module), build_batch(model)
    with Float64Detector() as detector:
        module.training_step(batch, 0)["loss"].backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
    assert not detector.operations
