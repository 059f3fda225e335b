"""Estimated memory equals the memory that a step then uses, and estimating allocates none of it."""

import itertools
import json
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sdft.losses.diffusion import DiffusionLoss
from sdft.methods.full import FullFineTuning
from sdft.methods.lora import ADAPTER_TYPES, INIT_METHODS, LoRA
from sdft.methods.textual_inversion import TextualInversion
from sdft.training import buckets
from sdft.training.adamw_bf16 import AdamWBF16
from sdft.training.bucketed_optimizer import BucketedOptimizer
from sdft.training.fake_tensors import StorageCounter
from sdft.training.memory_estimate import (
    count_bytes,
    estimate_memory,
    estimate_optimizer_state_bytes,
    get_free_and_total_memory,
)
from sdft.training.module import DiffusionModule
from sdft.training.optimizers import build_parameter_groups
from sdft.training.run_summary import check_memory
from sdft.training.step_spec import StepSpec

CPU = torch.device("cpu")
OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adafactor": partial(torch.optim.Adafactor, eps=(None, 1.0)),
    "adamw_bf16": AdamWBF16,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}


def build_module(model, method, compute_dtype=torch.float32, checkpointing=False, optimizer="adamw") -> DiffusionModule:
    rates = dict.fromkeys(("unet", "clip_l", "clip_g"), 1e-3)
    options = {"compute_dtype": compute_dtype, "checkpointing": checkpointing}
    return DiffusionModule(model, method, DiffusionLoss(), OPTIMIZERS[optimizer], None, rates, **options)


def build_sample(module, pixels: bool = False) -> dict[str, torch.Tensor]:
    """A batch of one, 32 px, with token ids, and with pixels or the moments of their latents."""
    model, side = module.model, 32 // module.model.vae_scale_factor
    sample = {name: torch.rand(1, 4, side, side) for name in ("posterior", "noise", "perturbation")}
    sample |= {
        "mask": torch.ones(1, 1, side, side),
        "offset": torch.rand(1, 4, 1, 1),
        "timestep_draw": torch.tensor([0.005]),
    }
    sample["geometry"] = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
    sample |= {"weight": torch.ones(1), "sample_weight": torch.ones(1), "ids": model.tokenize(["a three"])}
    moments = {"mean": sample["noise"], "std": sample["noise"]}
    return sample | ({"pixels": torch.rand(1, 3, 32, 32)} if pixels else moments)


def measure_step(module, step: StepSpec) -> int:
    """Peak bytes of torch's CPU allocator in a second step, in addition to weights and gradients."""
    batch = {name: t.repeat(step.batch_size, *[1] * (t.ndim - 1)) for name, t in step.sample.items()}

    def run_step() -> None:
        module.compute_losses(batch).mean().backward()
        module.masters.collect_gradients()

    run_step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run_step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes)) + sum(map(count_bytes, batch.values()))


CASES = {
    "lora": (LoRA(8, 8.0), {}, False),
    "lora bf16": (LoRA(8, 8.0), {"compute_dtype": torch.bfloat16}, False),
    "lora checkpointing": (LoRA(8, 8.0), {"checkpointing": True}, False),
    "sft from pixels": (FullFineTuning(), {}, True),
    "sft with text encoder bf16": (FullFineTuning(text_encoder=True), {"compute_dtype": torch.bfloat16}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_equals_the_memory_of_a_step(tiny, case):
    method, options, pixels = CASES[case]
    module = build_module(tiny(), method, **options)
    step = StepSpec(build_sample(module, pixels), 8, 2, CPU)
    estimate = estimate_memory(module, step)
    assert estimate.activations == pytest.approx(measure_step(module, step), rel=0.03)
    masters = module.masters.trained.values()
    assert estimate.weights == sum(map(count_bytes, [*module.parameters(), *module.buffers(), *masters]))
    assert estimate.gradients == sum(map(count_bytes, module.get_trainable_parameters().values()))


@pytest.mark.parametrize("text_encoder", [pytest.param(False, marks=pytest.mark.slow), ["clip_l"]])
def test_the_estimate_with_two_text_encoders_equals_the_memory_of_a_step(small_xl, text_encoder):
    module = build_module(small_xl(), LoRA(8, 8.0, text_encoder=text_encoder))
    step = StepSpec(build_sample(module), 8, 2, CPU)
    estimate, cached = estimate_memory(module, step), estimate_memory(module, replace(step, cached=True))
    assert estimate.activations == pytest.approx(measure_step(module, step), rel=0.03)
    assert estimate.weights == sum(map(count_bytes, [*module.parameters(), *module.buffers()]))
    assert (cached.activations < estimate.activations) == (not text_encoder)  # one trained encoder: no text is cached


CONV_TARGETS = ["to_q", "conv1", "downsamplers.0.conv"]
METHODS = {
    **{f"{kind} {targets[-1]}": LoRA(4, 4.0, adapter_type=kind, unet_targets=targets)
       for kind in ADAPTER_TYPES for targets in (["to_q"], CONV_TARGETS)},
    **{init: LoRA(4, 4.0, init_lora_weights=init, unet_targets=["to_q"]) for init in INIT_METHODS},
    "dora": LoRA(4, 4.0, use_dora=True, unet_targets=CONV_TARGETS),
    "rslora with dropout": LoRA(4, 4.0, use_rslora=True, dropout=0.1),
    "textual inversion": TextualInversion("<mine>", num_vectors=2),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_the_memory_of_every_kind_of_adapter_is_estimated(tiny, name):
    module = build_module(tiny(), METHODS[name])
    module.train()
    estimate = estimate_memory(module, StepSpec(build_sample(module), 4, 1, CPU))
    if name.startswith(("loha", "lokr")):  # they draw a random number per layer, and skip it if that is 0
        assert estimate.activations == pytest.approx(
            measure_step(module, StepSpec(build_sample(module), 4, 1, CPU)), rel=0.1
        )
    assert estimate.activations > estimate.gradients > 0


def test_estimating_changes_neither_module_nor_rng_and_is_fast(tiny):
    module = build_module(tiny(), LoRA(8, 8.0))
    step = StepSpec(build_sample(module), 8, 1, CPU, num_images=4, resolution=32)
    weights, rng_state = {n: p.clone() for n, p in module.named_parameters()}, torch.get_rng_state()
    first = estimate_memory(module, step)
    assert torch.equal(rng_state, torch.get_rng_state())
    assert all(torch.equal(weights[n], p) and p.grad is None for n, p in module.named_parameters())
    start = time.process_time()
    assert estimate_memory(module, step) == first
    assert time.process_time() - start < 5  # 1 s on an idle machine


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_estimated_optimizer_states_equal_the_real_ones(tiny, name):
    module = build_module(tiny(), FullFineTuning(), optimizer=name)
    parameters = list(module.get_trainable_parameters().values())
    optimizer = module.optimizer([{"params": parameters, "lr": 1e-3, "name": "unet"}])
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    expected = sum(count_bytes(value) for value in states if isinstance(value, torch.Tensor))
    shapes = [tuple(p.shape) for p in parameters]
    assert estimate_optimizer_state_bytes(module.optimizer, shapes, CPU) == pytest.approx(expected, rel=0.001)


def test_8bit_states_take_a_quarter():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    shapes = [(320, 320), (640, 320, 3, 3), (320,)]
    full = estimate_optimizer_state_bytes(OPTIMIZERS["adamw"], shapes, CPU)
    assert estimate_optimizer_state_bytes(bitsandbytes.optim.AdamW8bit, shapes, CPU) == pytest.approx(
        full / 4, rel=0.05
    )


@pytest.mark.slow
def test_options_that_save_memory_lower_the_estimate(tiny):
    module = build_module(tiny(), FullFineTuning())
    step = StepSpec(build_sample(module, pixels=True), 8, 1, CPU, ema=True)
    full = estimate_memory(module, step)
    assert full.ema == full.gradients and full.optimizer_states == pytest.approx(2 * full.gradients, rel=0.001)
    smaller = [
        {"batch_size": 4},
        {"gradient_checkpointing": True},
        {"image_scale": 0.5},
        {"cached": True},
    ]
    in_bf16 = build_module(tiny(), FullFineTuning(), compute_dtype=torch.bfloat16)
    assert estimate_memory(in_bf16, step).activations < full.activations
    for fields in smaller:
        assert estimate_memory(module, replace(step, **fields)).activations < full.activations
    assert estimate_memory(module, replace(step, has_ddp_buckets=True)).gradients == 2 * full.gradients
    sharded = estimate_memory(module, replace(step, num_shards=4))
    assert sharded.optimizer_states == full.optimizer_states // 4 and sharded.weights < full.weights


def test_offloaded_parts_count_on_a_cpu(tiny):
    module = build_module(tiny(), LoRA(8, 8.0, text_encoder=False))
    module.offloaded_parts = ["vae", "clip_l"]
    weights = estimate_memory(module, StepSpec(build_sample(module), 2, 1, CPU)).weights
    assert weights == sum(map(count_bytes, [*module.parameters(), *module.buffers()]))


def test_the_summary_has_the_estimate_and_warns_if_it_exceeds_free_memory(run, capsys, monkeypatch):
    _, folder = run("steps=1")
    expected = json.loads((folder / "run.json").read_text())["memory_gb_expected"]
    output = capsys.readouterr()
    assert f"estimated {expected * 1024:.0f} MB (excluding libraries) of " in output.out and "free" not in output.err
    monkeypatch.setattr(
        "sdft.training.run_summary.get_free_and_total_memory",
        lambda device, weight_bytes: (1000, get_free_and_total_memory(device, weight_bytes)[1]),
    )
    run("steps=1", name="two")
    assert ", 0 MB free" in capsys.readouterr().err


def test_a_failed_estimate_is_a_warning(monkeypatch):
    def fail(*_):
        raise TypeError("unsupported network")

    monkeypatch.setattr("sdft.training.run_summary.estimate_memory", fail)
    facts, (warning,) = check_memory(None, None)
    assert facts == {"memory_gb_expected": None} and warning.endswith(": unsupported network")


UPDATES = {  # optimizer, whether it steps inside the backward pass, whether weights have fp32 masters
    "bf16 weights and states, fused": ("adamw_bf16", True, False),
    "bf16 weights, fused": ("adamw", True, False),
    "bf16 weights, factored states, fused": ("adafactor", True, False),
    "bf16 weights, 8-bit states": ("adamw8bit", False, False),
    "fp32 masters, fused": ("adamw", True, True),
}
UPDATE_CASES = [
    pytest.param(*case, marks=pytest.mark.slow if number else (), id=name)
    for number, (name, case) in enumerate(UPDATES.items())
]


@pytest.mark.parametrize(("name", "fused", "masters"), UPDATE_CASES)
def test_updates_in_buckets_are_estimated(tiny, monkeypatch, name, fused, masters):
    monkeypatch.setattr(buckets, "MAX_ELEMENTS", 2**14)  # of a network that has a 400th of the usual weights
    build = pytest.importorskip("bitsandbytes").optim.AdamW8bit if name == "adamw8bit" else OPTIMIZERS[name]
    optimizer = partial(BucketedOptimizer, build=partial(build), seed=0, fused_backward=fused)
    rates, method = {"unet": 1e-3, "clip_l": 1e-3}, FullFineTuning()
    options = {"compute_dtype": torch.bfloat16, "checkpointing": True, "master_weights": masters}
    module = DiffusionModule(tiny(), method, DiffusionLoss(), optimizer, None, rates, **options)
    sample = build_sample(module)
    estimate = estimate_memory(module, StepSpec(sample, 1, 1, CPU))
    optimizer = build_module_optimizer(module)
    run_bucketed_step(module, optimizer, sample)
    with StorageCounter() as counter:
        run_bucketed_step(module, optimizer, sample)
    counted = counter.peak_bytes + sum(map(count_bytes, sample.values()))
    assert estimate.activations + estimate.gradients == pytest.approx(counted, rel=0.1)
    assert estimate.optimizer_states == pytest.approx(sum(map(count_bytes, list_states(optimizer))), rel=0.1)
    assert (estimate.gradients == 0) == fused


def build_module_optimizer(module) -> BucketedOptimizer:
    trainable, get_multiplier = module.get_trainable_parameters(), module.method.get_lr_multiplier
    optimizer = module.optimizer(build_parameter_groups(module.model.parts, trainable, module.lr, get_multiplier))
    optimizer.connect(module.masters.masters)
    return optimizer


def run_bucketed_step(module, optimizer, sample) -> None:
    module.compute_losses(sample).mean().backward()
    module.masters.collect_gradients()
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    module.masters.refresh_networks()


def list_states(optimizer) -> list[torch.Tensor]:
    states = [state for bucket in optimizer.buckets for state in bucket.optimizer.state.values()]
    shared = {id(value) for value in states[0].values()} & {id(value) for value in states[-1].values()}  # tables
    values = [value for state in states for value in state.values()]
    return [value for value in values if isinstance(value, torch.Tensor) and id(value) not in shared]
