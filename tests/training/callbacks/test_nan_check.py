"""Steps with a NaN/Inf loss update no weights and are reported."""

import json

import pytest
import torch

from sdft.runs.checkpoint_file import read_checkpoint
from sdft.training.module import DiffusionModule

OVERRIDES = ["steps=5", "save_every=1", "checkpoints_total_limit=9", "data.per_digit=2"]


@pytest.fixture
def nan_at_step_3(monkeypatch):
    """The third step's loss is NaN."""
    original = DiffusionModule.compute_losses

    def compute_losses(self, batch):
        return original(self, batch) * (float("nan") if self.trainer.global_step == 2 else 1.0)

    monkeypatch.setattr(DiffusionModule, "compute_losses", compute_losses)


def load_weights(folder, step: int) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "checkpoints" / f"step-{step:06d}.ckpt")["state_dict"]


def are_equal(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_run_stops_before_the_update_and_names_step_images_and_checkpoint(run, nan_at_step_3, tmp_path):
    with pytest.raises(ValueError, match="step 3: .*; .* at timestep [0-9]+") as error:
        run(*OVERRIDES)
    assert "the last checkpoint is" in str(error.value) and "step-00000" in str(error.value)
    folder = tmp_path / "run"
    assert json.loads((folder / "run.json").read_text())["state"] == "failed" and not (folder / "adapter").exists()
    assert all(w.isfinite().all() for w in load_weights(folder, 2).values())


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])  # fused and not fused
def test_a_skipped_step_leaves_the_weights_unchanged_and_is_counted(run, nan_at_step_3, capsys, optimizer):
    module, folder = run(*OVERRIDES, "on_nan=skip", f"optimizer={optimizer}", name=optimizer)
    before, skipped, after = (load_weights(folder, step) for step in (2, 3, 4))
    assert are_equal(before, skipped) and not are_equal(skipped, after)
    assert all(w.isfinite().all() for w in after.values())
    assert "train/skipped" in (folder / "metrics.csv").read_text() and int(module.skipped_steps) == 1
    assert "warning    step 3: NaN/Inf" in capsys.readouterr().out


def test_finite_steps_are_not_counted(run):
    module, folder = run("steps=3", "data.per_digit=2")
    assert int(module.skipped_steps) == 0 and "train/skipped" not in (folder / "metrics.csv").read_text()
