"""Experiments by card fit it: the counted memory of their real networks, on meta tensors, leaves room for the CUDA context."""

import re

import pytest
import torch
from accelerate import init_empty_weights
from conftest import ROOT
from hydra.core.hydra_config import HydraConfig
from test_config import compose_checked_config

from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.loading import build_untrained
from sdft.training.build import build_components, build_module
from sdft.training.memory_estimate import GB, count_offloaded_bytes, estimate_memory
from sdft.training.step_spec import StepSpec

RECIPES = [file for file in sorted((ROOT / "conf" / "experiment").glob("*gb.yaml")) if re.search(r"_\d+gb$", file.stem)]
MARGIN = 1.0  # GiB: the CUDA context, workspaces and fragmentation


@pytest.fixture
def build_sample(monkeypatch):
    """A sample with cached latents and text, as the benchmark of memory has it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from memory import build_sample

    return build_sample


def count_memory(build_sample, overrides: list[str]) -> tuple[float, float]:
    """GiB of a step and of sampling, at their peaks, on the GPU."""
    cfg = compose_checked_config(*overrides)
    parts = build_components(cfg, dict(HydraConfig.get().runtime.choices))
    with init_empty_weights():
        model = build_untrained(ASSETS_FOLDER / cfg.model.architecture)
    with torch.device("meta"):
        module = build_module(cfg, parts, model)
        module.offloaded_parts = ["vae", *model.text_encoders]
        sample = build_sample(model, cfg.resolution)
    step = StepSpec(sample, cfg.batch_size, cfg.gradient_accumulation_steps, torch.device("cpu"), ema=bool(cfg.ema))
    step.num_images, step.resolution = cfg.sampling.batch_size, cfg.resolution
    estimate, encoders = estimate_memory(module, step), count_offloaded_bytes(module)
    persistent = estimate.weights + estimate.gradients + estimate.optimizer_states + estimate.ema - encoders
    return (persistent + estimate.activations) / GB, (persistent + encoders + estimate.sampling) / GB


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(file, id=file.stem, marks=[pytest.mark.slow] * file.stem.startswith("sdxl")) for file in RECIPES],
)
def test_the_recipe_fits_its_card_and_its_comment_says_its_memory(build_sample, recipe):
    card = int(re.search(r"_(\d+)gb$", recipe.stem)[1])
    sizes = count_memory(build_sample, [f"experiment={recipe.stem}", "data.path=photos"])
    assert max(sizes) + MARGIN <= card
    stated = re.search(r"# Counted memory: ([\d.]+) GiB in a step, ([\d.]+) GiB while sampling\.", recipe.read_text())
    assert stated and [float(size) for size in stated.groups()] == pytest.approx(sizes, abs=0.06)
