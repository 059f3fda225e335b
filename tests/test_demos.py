"""What the recipes on the embedded model claim, measured."""

import json

import pytest
import torch
from conftest import read_scores
from PIL import Image

from sdft.data.digits import describe_styles, label_captions
from sdft.evaluation.metrics.clip import ClipFeatureExtractor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def looks():
    """A function from pictures to the look that tiny-clip sees in each."""
    clip, said = ClipFeatureExtractor("tiny-clip"), label_captions(describe_styles())
    features = clip.embed_texts(list(said))
    return lambda pictures: [
        list(said.values())[i]["style"] for i in (clip.embed_images(pictures) @ features.T).argmax(1).tolist()
    ]


def sampled(folder, step: int, prompt: str) -> list[Image.Image]:
    place = folder / "samples" / f"step-{step:06d}"
    facts = json.loads((place / "samples.json").read_text())
    return [Image.open(place / fact["file"]) for fact in facts if fact["prompt"] == prompt]


def test_dreambooth_learns_the_subject_and_only_the_prior_keeps_the_class(run, looks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept, scores = {}, {}
    for weight in (1, 0):
        words = [
            "experiment=digits_subject",
            "model.weights=pretrained",
            "batch_size=8",
            "sampling.steps=20",
            "log_every=10",
            "metrics=digits",
            "sample_every=0",
        ]
        _, folder = run(*words, "sampling.images=40", f"prior_loss_weight={weight}", name=f"weight{weight}")
        scores[weight] = read_scores(folder, "class")
        gain = json.loads((folder / "evaluation" / "scores.json").read_text())["states"][1]["difference"]["prompts"]
        assert gain["CLIP-I"]["low"] > 0.5
        subject, threes = (looks(sampled(folder, 150, p)) for p in ("a handwritten sks three", "a handwritten three"))
        assert subject.count("neon") >= 36  # of 40
        kept[weight] = threes
    base = looks(sampled(folder, 0, "a handwritten three"))
    assert base.count("neon") == 0 and len(set(base)) >= 8
    assert kept[1].count("neon") <= 2 and len(set(kept[1])) >= len(set(base)) / 2
    assert kept[0].count("neon") >= 15
    before, the_class = scores[1]["base"], {weight: told["fine-tuned"] for weight, told in scores.items()}
    assert the_class[1]["drift CMMD"] < 0.7 * the_class[0]["drift CMMD"]
    assert the_class[1]["PRES"] < before["PRES"] + 0.1 < the_class[0]["PRES"]  # S1-12: the leak, as a number
    assert the_class[1]["DIV"] > 0.8 * before["DIV"] > the_class[0]["DIV"]
    print(before, the_class)
    print({"base": len(set(base)), **{w: (t.count("neon"), len(set(t))) for w, t in kept.items()}})


def test_lora_on_cross_attention_makes_a_shifted_domain_clearer(run):  # S4-09
    torch.manual_seed(0)
    words = ["experiment=digits_lora", "model.weights=pretrained", "batch_size=16", "sampling.steps=20", "log_every=10"]
    _, folder = run(*words, "sample_every=0", "metrics=digits")
    scores = read_scores(folder)
    assert scores["base"]["style and digit"] <= 0.05 and scores["fine-tuned"]["style and digit"] >= 0.8
    assert scores["fine-tuned"]["CMMD"] < scores["base"]["CMMD"] / 5


def test_over_training_shows_as_falling_diversity_and_rising_memorisation(run):  # S3-40
    words = [
        "experiment=digits_subject",
        "prior_loss_weight=0",
        "model.weights=pretrained",
        "sampling.steps=20",
        "log_every=50",
    ]
    words += ["sample_every=0", "sampling.images=1", "metrics=digits", "steps=300", "batch_size=8"]
    _, folder = run(*words, "evaluate_every=50", "evaluate_images=16", "checkpoint_metric=CLIP-I")
    timeline = json.loads((folder / "evaluation" / "timeline.json").read_text())
    told = {entry["step"]: {n: s["value"] for n, s in entry["scores"]["prompts"].items()} for entry in timeline}
    assert told[300]["DIV"] < told[50]["DIV"] / 1.4 < told[0]["DIV"] / 2
    assert told[300]["nearest"] > told[50]["nearest"] + 0.02
    real = json.loads((folder / "evaluation" / "scores.json").read_text())["reference"]["prompts"]
    assert told[300]["nearest"] > real["nearest"] and told[300]["DIV"] < real["DIV"]
    best = json.loads((folder / "run.json").read_text())["best"]
    assert best["step"] < 300 and (folder / "best" / "pytorch_lora_weights.safetensors").is_file()
    page = (folder / "evaluation" / "report.html").read_text()
    assert page.count('class="frame') == 7 and 'id="copies"' in page


def test_consistency_distillation_draws_in_four_steps_what_took_thirty(run):
    from sdft.data.digits import InkedDigits
    from sdft.evaluation.metrics.zero_shot import ZeroShotAccuracy
    from sdft.models.loading import load_stable_diffusion
    from sdft.models.sampling import Sampling

    words = ["experiment=digits_lcm", "model.weights=pretrained", "batch_size=16", "sampling.steps=4", "steps=250"]
    module, _ = run(*words, "sample_every=0", "ema=0.99", "log_every=10")
    evaluation_spec = InkedDigits().evaluation_spec()
    judge = ZeroShotAccuracy(ClipFeatureExtractor("tiny-clip"), evaluation_spec.caption_labels, "digit")

    def digits(model, **how) -> float:
        pictures = Sampling(batch_size=60, **how)(model, evaluation_spec.prompts, 32)
        return float(judge.score_images(pictures, evaluation_spec.prompts).mean())

    base, few = (
        load_stable_diffusion("tiny-sd", architecture="tiny-sd"),
        {"steps": 4, "guidance_scale": 1.0, "scheduler": "lcm"},
    )
    before = digits(base, steps=30, guidance_scale=3.0)
    assert digits(module.model, **few) >= 0.9 * before > 0.8
    assert digits(base, steps=4, guidance_scale=3.0) < 0.5 * before
