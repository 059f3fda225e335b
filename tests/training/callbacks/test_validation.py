"""Validation sees the same images, noise and timesteps each time, and weights no loss."""

import csv
import json

import pytest
from PIL import Image


def rows(folder) -> list[dict]:
    with open(folder / "metrics.csv") as file:
        return [row for row in csv.DictReader(file) if row.get("validation/loss")]


def test_the_curve_has_its_points_by_quarter(run):
    _, folder = run("steps=6", "validate_every=2", "validation_split=0.1")
    found = rows(folder)
    assert [row["step"] for row in found] == ["0", "2", "4", "6"]
    for row in found:
        quarters = [float(row[f"validation/loss_quarter_{q}"]) for q in (1, 2, 3, 4)]
        assert sum(quarters) / 4 == pytest.approx(float(row["validation/loss"]), rel=1e-5)
    first, last = json.loads((folder / "run.json").read_text())["validation_loss"]
    assert [first, last] == pytest.approx(
        [float(found[0]["validation/loss"]), float(found[-1]["validation/loss"])], rel=1e-5
    )
    assert Image.open(folder / "loss.png").width > 800


WHOLE = ("steps=4", "save_every=2", "checkpoints_total_limit=2", "snr_gamma=5")


def test_ten_times_unless_told_otherwise_and_never_twice_at_a_step(run, shared):
    _, often = run("steps=20", "gradient_accumulation_steps=2", "batch_size=1", "validate_every=null", name="often")
    _, seldom = shared(*WHOLE)
    assert [int(row["step"]) for row in rows(often)] == list(range(0, 21, 2))
    assert [int(row["step"]) for row in rows(seldom)] == [0, 4]


def test_weightings_are_compared_by_the_same_number(shared):
    firsts = []
    for words in (WHOLE, ("steps=1", "snr_gamma=0"), ("steps=1", "weighting=debiased")):
        _, folder = shared(*words)
        firsts.append(rows(folder)[0]["validation/loss"])
    assert len(set(firsts)) == 1


def test_a_resumed_run_keeps_the_first_loss(run, shared):
    _, whole = shared(*WHOLE)
    _, resumed = run(*WHOLE, f"resume={whole / 'checkpoints' / 'step-000002.ckpt'}", name="resumed")
    a, b = (json.loads((folder / "run.json").read_text())["validation_loss"] for folder in (whole, resumed))
    assert a == b and rows(resumed)[0]["step"] != "2"
