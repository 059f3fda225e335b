"""The operations of a training step, which a GPU launches one by one, stay within their bounds."""

from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def launches(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import launches

    return launches


def count_phases(launches, architecture: str, precision: str) -> dict[str, int]:
    dtype, resolution = launches.PRECISIONS[precision], launches.RESOLUTIONS[architecture]
    counter = launches.count_step(launches.build_untrained_model(architecture), dtype, resolution)
    phases = {phase: counter.total(phase) for phase in launches.PHASES}
    return phases | {"total": counter.total(), "casts": counter.total(name=launches.CAST)}


def test_a_lora_step_stays_within_its_operations(launches):
    counts = count_phases(launches, "sd15", "bf16")
    assert counts["total"] <= 2050 and counts["casts"] <= 10, counts
    assert counts["loss"] <= 36 and counts["gradients"] <= 20 and counts["optimizer"] <= 7, counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "precision", "bound"), [("sd15", "fp32", 2050), ("sd15", "fp16", 2060), ("sdxl", "bf16", 6400)]
)
def test_other_lora_steps_stay_within_their_operations(launches, architecture, precision, bound):
    counts = count_phases(launches, architecture, precision)
    assert counts["total"] <= bound and counts["casts"] <= 12, counts


def test_a_unet_call_of_sampling_stays_within_its_operations(launches):
    for has_adapter, bound in ((False, 760), (True, 960)):
        assert launches.count_unet_call("sd15", torch.bfloat16, 512, has_adapter).total() <= bound


def test_a_counter_leaves_out_views_and_counts_by_phase(launches):
    with launches.LaunchCounter() as counter:
        tensor = counter.empty_like(torch.empty(4, 6, device="meta"))
        with counter.count("outer"):
            (tensor.t().reshape(2, 12).view(24) + 1).sum()
            with counter.count("inner"):
                tensor.half()
        tensor.mul(2)
    assert counter.counts == {("outer", "clone"): 1, ("outer", "add"): 1, ("outer", "sum"): 1, ("inner", "_to_copy"): 1}


@pytest.mark.slow
def test_kernels_are_counted_in_code_for_a_gpu(launches):
    """Of a matrix product and the pointwise operations after it, which are fused; the backward pass has two products."""
    import compiled_launches

    weight = torch.zeros(64, 64, device="meta", requires_grad=True)
    inputs = torch.zeros(32, 64, device="meta", requires_grad=True)
    counter = compiled_launches.KernelCounter()
    torch.compiler.reset()
    with compiled_launches.pretend_h100():
        compiled = torch.compile(lambda x, weight: 2 * (x @ weight).relu() + 1, backend=counter)
        for _ in range(3):
            compiled(inputs, weight)
    kernels = {key: count for key, count in counter.total().items() if count}
    assert counter.calls == [3]
    assert kernels == {
        (phase, kind): n
        for phase, kind, n in (
            ("forward", "library", 3),
            ("forward", "triton", 3),
            ("backward", "library", 6),
            ("backward", "triton", 3),
        )
    }


@pytest.mark.slow
def test_removed_blocks_have_no_operations_and_the_same_shapes(launches):
    import compiled_launches

    model = launches.build_untrained_model("sd15")
    module, step = launches.build_step(model, torch.float32, 512)
    with launches.LaunchCounter() as counter:
        fake = launches.build_fake_module(module, step, counter)
        compiled_launches.remove_blocks(fake.model.unet)
        block = fake.model.unet.down_blocks[1].resnets[0]
        hidden = counter.empty_like(torch.empty(1, 320, 8, 8, device="meta")).requires_grad_()
        with counter.count("block"):
            output = block(hidden, None)
            torch.autograd.grad(output, hidden, torch.empty_like(output))
    assert output.shape == (1, 640, 8, 8) and not counter.counts
