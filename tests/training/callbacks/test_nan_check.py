"""What is no number changes no weight, and is named."""

import json

import pytest
import torch

from sdft.runs.checkpoint_file import read_checkpoint
from sdft.training.module import DiffusionModule

WORDS = ["steps=5", "save_every=1", "checkpoints_total_limit=9", "data.per_digit=2"]


@pytest.fixture
def spoiled(monkeypatch):
    """The third step's loss is no number."""
    losses = DiffusionModule.compute_losses

    def spoil(self, batch):
        return losses(self, batch) * (float("nan") if self.trainer.global_step == 2 else 1.0)

    monkeypatch.setattr(DiffusionModule, "compute_losses", spoil)


def weights(folder, step: int) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "checkpoints" / f"step-{step:06d}.ckpt")["state_dict"]


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_run_stops_before_the_update_and_names_step_pictures_and_checkpoint(run, spoiled, tmp_path):
    with pytest.raises(ValueError, match="step 3: loss or gradient is no number; .* at timestep [0-9]+") as told:
        run(*WORDS)
    assert "the last checkpoint is" in str(told.value) and "step-00000" in str(told.value)
    folder = tmp_path / "run"
    assert json.loads((folder / "run.json").read_text())["state"] == "failed" and not (folder / "adapter").exists()
    assert all(w.isfinite().all() for w in weights(folder, 2).values())


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])  # fused, and not
def test_skipping_leaves_the_weights_untouched_and_counts(run, spoiled, capsys, optimizer):
    module, folder = run(*WORDS, "on_nan=skip", f"optimizer={optimizer}", name=optimizer)
    before, bad, after = (weights(folder, step) for step in (2, 3, 4))
    assert same(before, bad) and not same(bad, after) and all(w.isfinite().all() for w in after.values())
    assert "train/skipped" in (folder / "metrics.csv").read_text() and int(module.skipped_steps) == 1
    assert "warning  step 3: loss or gradient is no number" in capsys.readouterr().out


def test_steps_that_are_numbers_are_as_if_nobody_looked(run):
    module, folder = run("steps=3", "data.per_digit=2")
    assert int(module.skipped_steps) == 0 and "train/skipped" not in (folder / "metrics.csv").read_text()
