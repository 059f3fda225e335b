"""Scores of real photographs against each other."""

import json

import numpy as np
import pytest
from conftest import save_images
from test_evaluate import compose_evaluation_config

from sdft.data.digits import Digits
from sdft.evaluation.metrics.clip import ClipFeatureExtractor
from sdft.evaluation.real_image_baseline import score_real_images


def test_scores_per_subject_and_mean_exclude_self_pairs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    for name, digit in (("three", 3), ("five", 5)):
        save_images(Digits(digits=[digit], per_digit=4), tmp_path / "set" / name, 4)
    cfg = compose_evaluation_config(
        "protocol=dreambooth_bench", "model=none", "metrics=digits", f"data.path={tmp_path / 'set'}"
    )
    rows = score_real_images(cfg)
    clip = ClipFeatureExtractor("tiny-clip")
    expected = {}
    for name, digit in (("three", 3), ("five", 5)):
        source = Digits(digits=[digit], per_digit=4)
        features = clip.embed_images([source[i].image for i in range(4)]).numpy()
        expected[name] = (features @ features.T)[~np.eye(4, dtype=bool)].mean()
    assert {name: rows[name]["CLIP-I"] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert rows["mean"]["CLIP-I"] == pytest.approx(np.mean(list(expected.values())), abs=1e-5)
    assert json.loads((tmp_path / "outputs/evaluation/real.json").read_text())["scores"] == rows
    assert "three" in capsys.readouterr().out


def test_single_subject_and_no_subject(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_images(Digits(), tmp_path / "one", 3)
    assert set(
        score_real_images(compose_evaluation_config("metrics=digits", "model=none", f"data.path={tmp_path / 'one'}"))
    ) == {
        "one",
        "mean",
    }
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="data.path=.*empty: "):
        score_real_images(compose_evaluation_config("metrics=digits", "model=none", f"data.path={tmp_path / 'empty'}"))


def test_documented_command_selects_its_metrics():
    cfg = compose_evaluation_config("protocol=dreambooth_bench", "model=none", "data.path=x")
    assert cfg.model == "none" and cfg.metrics.dino == "facebook/dino-vits16" and cfg.data.path == "x"
