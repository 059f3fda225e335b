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


def test_a_lora_step_stays_within_its_operations(launches):
    counter = launches.count_step(launches.build_untrained_model("sd15"), torch.float32, 512)
    counts = {phase: counter.total(phase) for phase in launches.PHASES}
    assert counter.total() <= 2050, counts
    assert counts["loss"] <= 46 and counts["gradients"] <= 20 and counts["optimizer"] <= 7, counts


def test_a_counter_leaves_out_views_and_counts_by_phase(launches):
    with launches.LaunchCounter() as counter:
        tensor = counter.empty_like(torch.empty(4, 6, device="meta"))
        with counter.count("outer"):
            (tensor.t().reshape(2, 12).view(24) + 1).sum()
            with counter.count("inner"):
                tensor.half()
        tensor.mul(2)
    assert counter.counts == {("outer", "clone"): 1, ("outer", "add"): 1, ("outer", "sum"): 1, ("inner", "_to_copy"): 1}
