"""What the recipes on the embedded model claim, measured."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from PIL import Image

from sdft.data.digits import answers, style_words
from sdft.metrics.clip import Clip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def looks():
    """A function from pictures to the look that tiny-clip sees in each."""
    clip, said = Clip("tiny-clip"), answers(style_words())
    features = clip.texts(list(said))
    return lambda pictures: [
        list(said.values())[i]["style"] for i in (clip.images(pictures) @ features.T).argmax(1).tolist()
    ]


def sampled(folder, step: int, prompt: str) -> list[Image.Image]:
    place = folder / "samples" / f"step-{step:06d}"
    facts = json.loads((place / "samples.json").read_text())
    return [Image.open(place / fact["file"]) for fact in facts if fact["prompt"] == prompt]


def test_dreambooth_learns_the_subject_and_only_the_prior_keeps_the_class(run, looks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = {}
    for weight in (1, 0):
        words = [
            "experiment=digits_subject",
            "model.weights=pretrained",
            "batch_size=8",
            "sampling.steps=20",
            "log_every=10",
        ]
        _, folder = run(
            *words, "sampling.images=40", "sample_every=0", f"prior_weight={weight}", name=f"weight{weight}"
        )
        subject, threes = (looks(sampled(folder, 150, p)) for p in ("a handwritten sks three", "a handwritten three"))
        assert subject.count("neon") >= 36  # of 40
        kept[weight] = threes
    base = looks(sampled(folder, 0, "a handwritten three"))
    assert base.count("neon") == 0 and len(set(base)) >= 8
    assert kept[1].count("neon") <= 2 and len(set(kept[1])) >= len(set(base)) / 2
    assert kept[0].count("neon") >= 15
    print({"base": len(set(base)), **{w: (t.count("neon"), len(set(t))) for w, t in kept.items()}})


def test_two_processes_are_one_with_the_double_batch(tmp_path):  # pitfall 13
    from safetensors.torch import load_file

    words = ["steps=3", "logger=none", "metrics=none", "sample_every=0", "sampling.steps=2", "data.per_digit=3"]
    words += ["accelerator=cpu", "optimizer.eps=1e-3", "schedule=cosine", "accumulate=2"]
    found = {}
    for name, more in {"one": ["batch_size=4"], "two": ["batch_size=2", "devices=2", "strategy=ddp"]}.items():
        command = [sys.executable, str(ROOT / "train.py"), *words, *more, f"hydra.run.dir={tmp_path / name}"]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=600, stdout=subprocess.DEVNULL)
        found[name] = load_file(tmp_path / name / "adapter" / "pytorch_lora_weights.safetensors")
        rates = (tmp_path / name / "metrics.csv").read_text()
        assert rates.count("\n") > 2
    assert all(torch.allclose(found["one"][key], found["two"][key], atol=1e-5) for key in found["one"])


def test_lora_on_cross_attention_makes_a_shifted_domain_clearer(run):  # S4-09
    torch.manual_seed(0)
    words = ["experiment=digits_lora", "model.weights=pretrained", "batch_size=16", "sampling.steps=20", "log_every=10"]
    _, folder = run(*words, "sample_every=0", "metrics=digits")
    scores = json.loads((folder / "evaluation" / "scores.json").read_text())["scores"]
    assert scores["base"]["style and digit"] <= 0.05 and scores["fine-tuned"]["style and digit"] >= 0.8
    assert scores["fine-tuned"]["CMMD"] < scores["base"]["CMMD"] / 5
