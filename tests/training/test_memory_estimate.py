"""What training needs is found without taking it, and is what it then takes."""

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
from sdft.methods.lora import LoRA
from sdft.training.memory_estimate import (
    StepSpec,
    count_bytes,
    estimate_memory,
    estimate_optimizer_state_bytes,
    get_free_and_total_memory,
)
from sdft.training.module import DiffusionModule
from sdft.training.run_summary import check_memory

CPU = torch.device("cpu")
OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adafactor": partial(torch.optim.Adafactor, eps=(None, 1.0)),
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}


def fine_tuning(model, method, compute_dtype=torch.float32, checkpointing=False, optimizer="adamw") -> DiffusionModule:
    rates = {"unet": 1e-3, "text_encoder": 1e-3}
    about = {"compute_dtype": compute_dtype, "checkpointing": checkpointing}
    return DiffusionModule(model, method, DiffusionLoss(), OPTIMIZERS[optimizer], None, rates, **about)


def sample(module, pixels: bool = False) -> dict[str, torch.Tensor]:
    """A batch of one, 32 px, with token ids, and pixels or the moments of their latents."""
    model, side = module.model, 32 // module.model.vae_scale_factor
    made = {name: torch.rand(1, 4, side, side) for name in ("posterior", "noise", "perturbation")}
    made |= {"mask": torch.ones(1, 1, side, side), "offset": torch.rand(1, 4, 1, 1), "timestep": torch.tensor([5])}
    made |= {"weight": torch.ones(1), "sample_weight": torch.ones(1), "ids": model.tokenize(["a three"])}
    seen = {"pixels": torch.rand(1, 3, 32, 32)} if pixels else {"mean": made["noise"], "std": made["noise"]}
    return made | seen


def taken(module, step: StepSpec) -> int:
    """Bytes that torch's CPU allocator held at most in a second step, beside weights and gradients."""
    batch = {name: t.repeat(step.batch_size, *[1] * (t.ndim - 1)) for name, t in step.sample.items()}
    compute_dtype = module.model.compute_dtype

    def run() -> None:
        with torch.autocast("cpu", compute_dtype, enabled=compute_dtype is not torch.float32):
            loss = module.compute_losses(batch).mean()
        loss.backward()

    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = sorted(
        (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    )
    return max(itertools.accumulate(e.nbytes() for e in events)) + sum(map(count_bytes, batch.values()))


CASES = {
    "lora": (LoRA(8, 8.0), {}, False),
    "lora bf16": (LoRA(8, 8.0), {"compute_dtype": torch.bfloat16}, False),
    "lora checkpointing": (LoRA(8, 8.0), {"checkpointing": True}, False),
    "sft from pixels": (FullFineTuning(), {}, True),
    "sft of both bf16": (FullFineTuning(text_encoder=True), {"compute_dtype": torch.bfloat16}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_expected_is_what_a_step_then_takes(tiny, case):
    method, about, pixels = CASES[case]
    module = fine_tuning(tiny(), method, **about)
    step = StepSpec(sample(module, pixels), 8, 2, CPU)
    found = estimate_memory(module, step)
    assert found.activations == pytest.approx(taken(module, step), rel=0.03)
    assert found.weights == sum(map(count_bytes, [*module.parameters(), *module.buffers()]))
    assert found.gradients == sum(map(count_bytes, module.get_trainable_parameters().values()))


def test_expecting_touches_neither_module_nor_chance_and_takes_little_time(tiny):
    module = fine_tuning(tiny(), LoRA(8, 8.0))
    step = StepSpec(sample(module), 8, 1, CPU, num_images=4, pixels=32)
    weights, chance = {n: p.clone() for n, p in module.named_parameters()}, torch.get_rng_state()
    first = estimate_memory(module, step)
    assert torch.equal(chance, torch.get_rng_state())
    assert all(torch.equal(weights[n], p) and p.grad is None for n, p in module.named_parameters())
    began = time.process_time()
    assert estimate_memory(module, step) == first
    assert time.process_time() - began < 5  # a second where nobody else computes


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_are_those_that_an_optimizer_makes(tiny, name):
    module = fine_tuning(tiny(), FullFineTuning(), optimizer=name)
    learned = list(module.get_trainable_parameters().values())
    made = module.optimizer([{"params": learned, "lr": 1e-3, "name": "unet"}])
    for parameter in learned:
        parameter.grad = torch.ones_like(parameter)
    made.step()
    kept = sum(count_bytes(v) for state in made.state.values() for v in state.values() if isinstance(v, torch.Tensor))
    assert estimate_optimizer_state_bytes(module.optimizer, [tuple(p.shape) for p in learned], CPU) == pytest.approx(
        kept, rel=0.001
    )


def test_eight_bits_are_a_quarter():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    shapes = [(320, 320), (640, 320, 3, 3), (320,)]
    plain = estimate_optimizer_state_bytes(OPTIMIZERS["adamw"], shapes, CPU)
    assert estimate_optimizer_state_bytes(bitsandbytes.optim.AdamW8bit, shapes, CPU) == pytest.approx(
        plain / 4, rel=0.05
    )


def test_every_word_that_needs_less_is_expected_to(tiny):
    module = fine_tuning(tiny(), FullFineTuning())
    step = StepSpec(sample(module, pixels=True), 8, 1, CPU, ema=True)
    whole = estimate_memory(module, step)
    assert whole.average == whole.gradients and whole.states == pytest.approx(2 * whole.gradients, rel=0.001)
    less = [
        {"batch_size": 4},
        {"checkpointing": True},
        {"scale": 0.5},
        {"compute_dtype": torch.bfloat16},
        {"cached": True},
    ]
    for words in less:
        assert estimate_memory(module, replace(step, **words)).activations < whole.activations
    assert estimate_memory(module, replace(step, has_ddp_buckets=True)).gradients == 2 * whole.gradients
    spread = estimate_memory(module, replace(step, num_shards=4))
    assert spread.states == whole.states // 4 and spread.weights < whole.weights


def test_parts_that_rest_count_where_they_are(tiny):
    module = fine_tuning(tiny(), LoRA(8, 8.0, text_encoder=False))
    module.offloaded_parts = ["vae", "text_encoder"]
    here = estimate_memory(module, StepSpec(sample(module), 2, 1, CPU)).weights
    assert here == sum(map(count_bytes, [*module.parameters(), *module.buffers()]))


def test_the_plan_says_what_is_needed_and_warns_when_it_is_not_there(run, capsys, monkeypatch):
    _, folder = run("steps=1")
    expected = json.loads((folder / "run.json").read_text())["memory_gb_expected"]
    told = capsys.readouterr()
    assert (
        f"needs    about {expected * 1024:.0f} MB, beside the libraries, of the machine's " in told.out
        and "free" not in told.err
    )
    monkeypatch.setattr(
        "sdft.training.run_summary.get_free_and_total_memory",
        lambda device, held: (1000, get_free_and_total_memory(device, held)[1]),
    )
    run("steps=1", name="two")
    assert "of memory are needed and 0 MB are free" in capsys.readouterr().err


def test_what_cannot_be_estimated_is_told_and_stops_nothing(monkeypatch):
    def stumbles(*_):
        raise TypeError("a network of another kind")

    monkeypatch.setattr("sdft.training.run_summary.estimate_memory", stumbles)
    assert check_memory(None, None) == (
        {"memory_gb_expected": None},
        ["memory is not estimated: a network of another kind"],
    )
