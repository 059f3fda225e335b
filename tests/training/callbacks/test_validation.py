"""Validation uses fixed images, noise and timesteps, and unweighted losses."""

import csv
import json

import pytest
from PIL import Image


def read_rows(folder) -> list[dict]:
    with open(folder / "metrics.csv") as file:
        return [row for row in csv.DictReader(file) if row.get("validation/loss")]


def test_the_curve_has_one_row_per_validation_with_quarters(run):
    _, folder = run("steps=6", "validate_every=2", "validation_split=0.1")
    rows = read_rows(folder)
    assert [row["step"] for row in rows] == ["0", "2", "4", "6"]
    for row in rows:
        quarters = [float(row[f"validation/loss_quarter_{q}"]) for q in (1, 2, 3, 4)]
        assert sum(quarters) / 4 == pytest.approx(float(row["validation/loss"]), rel=1e-5)
    first, last = json.loads((folder / "run.json").read_text())["validation_loss"]
    assert [first, last] == pytest.approx(
        [float(rows[0]["validation/loss"]), float(rows[-1]["validation/loss"])], rel=1e-5
    )
    assert Image.open(folder / "loss.png").width > 800


OVERRIDES = ("steps=4", "save_every=2", "checkpoints_total_limit=2", "snr_gamma=5")


@pytest.mark.slow
def test_ten_validations_by_default_and_one_per_step_at_most(run, shared_run):
    _, often = run("steps=20", "gradient_accumulation_steps=2", "batch_size=1", "validate_every=null", name="often")
    _, rarely = shared_run(*OVERRIDES)
    assert [int(row["step"]) for row in read_rows(often)] == list(range(0, 21, 2))
    assert [int(row["step"]) for row in read_rows(rarely)] == [0, 4]


@pytest.mark.slow
def test_the_loss_is_comparable_between_weightings(shared_run):
    firsts = []
    for overrides in (OVERRIDES, ("steps=1", "snr_gamma=0"), ("steps=1", "weighting=debiased")):
        _, folder = shared_run(*overrides)
        firsts.append(read_rows(folder)[0]["validation/loss"])
    assert len(set(firsts)) == 1


def test_a_resumed_run_keeps_the_first_loss(run, shared_run):
    _, uninterrupted = shared_run(*OVERRIDES)
    _, resumed = run(*OVERRIDES, f"resume={uninterrupted / 'checkpoints' / 'step-000002.ckpt'}", name="resumed")
    losses, resumed_losses = (
        json.loads((folder / "run.json").read_text())["validation_loss"] for folder in (uninterrupted, resumed)
    )
    assert losses == resumed_losses and read_rows(resumed)[0]["step"] != "2"
