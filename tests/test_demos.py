"""Measure the claims of the recipes on the embedded model."""

import json

import pytest
import torch
from conftest import read_scores
from PIL import Image

from sdft.data.digits import describe_styles, label_captions
from sdft.evaluation.metrics.clip import ClipFeatureExtractor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def classify_styles():
    """A function that classifies the style of images with tiny-clip."""
    clip, labels = ClipFeatureExtractor("tiny-clip"), label_captions(describe_styles())
    features = clip.embed_texts(list(labels))
    return lambda images: [
        list(labels.values())[i]["style"] for i in (clip.embed_images(images) @ features.T).argmax(1).tolist()
    ]


def load_samples(folder, step: int, prompt: str) -> list[Image.Image]:
    step_folder = folder / "samples" / f"step-{step:06d}"
    samples = json.loads((step_folder / "samples.json").read_text())
    return [Image.open(step_folder / sample["file"]) for sample in samples if sample["prompt"] == prompt]


def test_dreambooth_trains_the_subject_and_prior_preservation_preserves_after(
    run, classify_styles, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    class_styles, scores = {}, {}
    for weight in (1, 0):
        overrides = [
            "experiment=digits_subject",
            "model.weights=pretrained",
            "batch_size=8",
            "sampling.steps=20",
            "log_every=10",
            "metrics=digits",
            "sample_every=0",
        ]
        _, folder = run(*overrides, "sampling.images=40", f"prior_loss_weight={weight}", name=f"weight{weight}")
        scores[weight] = read_scores(folder, "class")
        gain = json.loads((folder / "evaluation" / "scores.json").read_text())["states"][1]["difference"]["prompts"]
        assert gain["CLIP-I"]["low"] > 0.5
        prompts = ("a handwritten sks three", "a handwritten three")
        subject, threes = (classify_styles(load_samples(folder, 150, prompt)) for prompt in prompts)
        assert subject.count("neon") >= 36  # of 40
        class_styles[weight] = threes
    base = classify_styles(load_samples(folder, 0, "a handwritten three"))
    assert base.count("neon") == 0 and len(set(base)) >= 8
    assert class_styles[1].count("neon") <= 2 and len(set(class_styles[1])) >= len(set(base)) / 2
    assert class_styles[0].count("neon") >= 15
    before, after = scores[1]["base"], {weight: states["fine-tuned"] for weight, states in scores.items()}
    assert after[1]["drift CMMD"] < 0.7 * after[0]["drift CMMD"]
    assert after[1]["PRES"] < before["PRES"] + 0.1 < after[0]["PRES"]  # S1-12: leakage into the class
    assert after[1]["DIV"] > 0.8 * before["DIV"] > after[0]["DIV"]
    print(before, after)
    print({"base": len(set(base)), **{w: (t.count("neon"), len(set(t))) for w, t in class_styles.items()}})


def test_lora_on_cross_attention_adapts_to_a_shifted_domain(run):  # S4-09
    torch.manual_seed(0)
    overrides = [
        "experiment=digits_lora",
        "model.weights=pretrained",
        "batch_size=16",
        "sampling.steps=10",
        "log_every=10",
        "steps=250",
        "protocol.images=8",
    ]
    _, folder = run(*overrides, "sample_every=0", "metrics=digits")
    scores = read_scores(folder)
    assert scores["base"]["style and digit"] <= 0.05 and scores["fine-tuned"]["style and digit"] >= 0.8
    assert scores["fine-tuned"]["CMMD"] < scores["base"]["CMMD"] / 5


def test_the_default_run_of_the_small_sdxl_adapts_to_the_style(run):
    overrides = ["model=tiny_xl", "model.weights=pretrained", "batch_size=16", "sampling.steps=20", "log_every=10"]
    _, folder = run(*overrides, "steps=50", "protocol.images=8", "sample_every=0", "metrics=digits")
    scores = read_scores(folder)
    assert scores["base"]["style and digit"] <= 0.05 and scores["fine-tuned"]["style and digit"] >= 0.9
    assert scores["fine-tuned"]["CMMD"] < scores["base"]["CMMD"] / 5


def test_overfitting_lowers_diversity_and_raises_memorization(run):  # S3-40
    overrides = [
        "experiment=digits_subject",
        "prior_loss_weight=0",
        "model.weights=pretrained",
        "sampling.steps=10",
        "log_every=50",
    ]
    overrides += ["sample_every=0", "sampling.images=1", "metrics=digits", "steps=250", "batch_size=8"]
    _, folder = run(*overrides, "evaluate_every=50", "evaluate_images=10", "checkpoint_metric=CLIP-I")
    timeline = json.loads((folder / "evaluation" / "timeline.json").read_text())
    scores = {entry["step"]: {n: s["value"] for n, s in entry["scores"]["prompts"].items()} for entry in timeline}
    assert scores[250]["DIV"] < scores[50]["DIV"] / 1.4 < scores[0]["DIV"] / 2
    assert scores[250]["nearest"] > scores[50]["nearest"] + 0.02
    real = json.loads((folder / "evaluation" / "scores.json").read_text())["reference"]["prompts"]
    assert scores[250]["nearest"] > real["nearest"] and scores[250]["DIV"] < real["DIV"]
    best = json.loads((folder / "run.json").read_text())["best"]
    assert best["step"] < 250 and (folder / "best" / "pytorch_lora_weights.safetensors").is_file()
    page = (folder / "evaluation" / "report.html").read_text()
    assert page.count('class="frame') == 6 and 'id="copies"' in page


def test_consistency_distillation_matches_thirty_steps_in_four(run):
    from sdft.data.inked_digits import InkedDigits
    from sdft.evaluation.metrics.base import EvaluationData
    from sdft.evaluation.metrics.zero_shot import ZeroShotAccuracy
    from sdft.models.loading import load_stable_diffusion
    from sdft.models.sampling import Sampling

    overrides = ["experiment=digits_lcm", "model.weights=pretrained", "batch_size=16", "sampling.steps=4", "steps=200"]
    module, _ = run(*overrides, "sample_every=0", "ema=0.99", "log_every=10")
    evaluation_spec = InkedDigits().evaluation_spec()
    data = EvaluationData(evaluation_spec=evaluation_spec)
    metric = ZeroShotAccuracy().build("zero-shot", ClipFeatureExtractor("tiny-clip"), data)["digit"]

    def score_digits(model, **options) -> float:
        images = Sampling(batch_size=60, **options)(model, evaluation_spec.prompts, 32)
        return float(metric.score_images(images, evaluation_spec.prompts).mean())

    base, four_steps = (
        load_stable_diffusion("tiny-sd", architecture="tiny-sd"),
        {"steps": 4, "guidance_scale": 1.0, "scheduler": "lcm"},
    )
    before = score_digits(base, steps=30, guidance_scale=3.0)
    assert score_digits(module.model, **four_steps) >= 0.9 * before > 0.8
    assert score_digits(base, steps=4, guidance_scale=3.0) < 0.5 * before
