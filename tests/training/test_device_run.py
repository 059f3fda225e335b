"""A whole run on a pretended GPU, its continuation, and the same run on the CPU."""

from pathlib import Path

import pytest
import torch
from conftest import read_metric_rows, read_scores
from pretended_gpu import PretendedGPU
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
OVERRIDES = [
    "steps=2",
    "precision=fp32",
    "optimizer.eps=1e-3",
    "save_every=1",
    "checkpoints_total_limit=9",
    "ema=0.9",
    "data.per_digit=1",
    "prompts=[a red one]",
]
OVERRIDES += ["validate_every=1", "prior=class_images", "class_prompt=a one", "instance_prompt=a red one"]
OVERRIDES += ["num_class_images=2", "metrics=digits", "protocol.images=1", "evaluate_every=2", "evaluate_images=1"]


def list_files(folder: Path) -> set[Path]:
    """Without evaluated images, whose folders are named after the weights."""
    return {file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and "images" not in file.parts}


def test_a_run_on_the_device_equals_one_on_the_cpu_and_resumes(run):
    _, on_cpu = run(*OVERRIDES, name="cpu")
    with PretendedGPU():
        _, on_gpu = run(*OVERRIDES, "accelerator=gpu", name="gpu")
        resume = f"resume={on_gpu / 'checkpoints' / 'step-000001.ckpt'}"
        _, resumed = run(*OVERRIDES, "accelerator=gpu", resume, name="resumed")
    assert list_files(on_cpu) == list_files(on_gpu)
    weights = [load_file(folder / "adapter" / "lora-kohya.safetensors") for folder in (on_cpu, on_gpu, resumed)]
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=5e-5) and torch.equal(weights[1][name], weights[2][name])
    losses = [[float(row["train/loss"]) for row in read_metric_rows(folder)] for folder in (on_cpu, on_gpu)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for label, scores in read_scores(on_cpu).items():
        measured = {name: score for name, score in scores.items() if score is not None}
        assert measured == pytest.approx({n: read_scores(on_gpu)[label][n] for n in measured}, rel=1e-3, abs=1e-3)
