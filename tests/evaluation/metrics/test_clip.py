"""tiny-clip is an open_clip model, classifies the digit images, and shares its text encoder with tiny-sd."""

import pytest
import torch

from sdft.data.digits import Digits
from sdft.data.inked_digits import InkedDigits
from sdft.evaluation.metrics.base import EvaluationData
from sdft.evaluation.metrics.clip import ClipFeatureExtractor
from sdft.evaluation.metrics.zero_shot import ZeroShotAccuracy
from sdft.evaluation.metrics_config import MetricsConfig
from sdft.training.module import DiffusionModule


@pytest.fixture(scope="module")
def scorer():
    return ClipFeatureExtractor("tiny-clip")


def test_features_are_unit_vectors_for_any_batch_size(scorer):
    images = [InkedDigits()[i].image for i in range(5)]
    features = scorer.embed_images(images)
    scorer.batch_size, scorer.feature_cache = 2, {}
    assert torch.allclose(scorer.embed_images(images), features, atol=1e-5)
    assert torch.allclose(features.norm(dim=1), torch.ones(5), atol=1e-5)
    scorer.batch_size = 64


def test_zero_shot_accuracy_on_real_images(scorer):  # pitfall 36
    source = Digits(digits=list(range(10)), per_digit=12)
    metrics = ZeroShotAccuracy().build("zero-shot", scorer, EvaluationData(evaluation_spec=source.evaluation_spec()))
    for axis, minimum in (("style", 0.99), ("digit", 0.93)):
        metrics[axis].update([source[i].image for i in range(len(source))], source.captions())
        assert metrics[axis].compute() >= minimum


def test_text_encoder_is_that_of_tiny_sd(scorer):
    from sdft.models.loading import load_stable_diffusion

    model = load_stable_diffusion("tiny-sd")
    ids = model.tokenize(["a handwritten three in red ink on white paper"])
    hidden = model.encode_text(ids)["context"][0, ids[0].tolist().index(model.tokenizer.eos_token_id)]
    projected = hidden @ scorer.model.text_projection
    expected = scorer.model.encode_text(scorer.tokenizer(["a handwritten three in red ink on white paper"]))[0]
    assert torch.allclose(projected, expected, atol=1e-4)


def test_unknown_model_is_rejected():
    with pytest.raises(ValueError, match="metrics.clip=ViT-X: "):
        ClipFeatureExtractor("ViT-X")


def test_missing_weights_are_reported():
    with pytest.raises(ValueError, match="metrics.clip=ViT-B-32: .*metrics.pretrained=FILE"):
        ClipFeatureExtractor("ViT-B-32", pretrained="openai")


def test_scorer_moves_to_its_device_on_use():
    scorer, image = ClipFeatureExtractor("tiny-clip", device="meta"), InkedDigits()[0].image
    devices = lambda: {parameter.device.type for parameter in scorer.model.parameters()}  # noqa: E731
    assert devices() == {"cpu"}
    with pytest.raises(NotImplementedError):  # meta tensors have no data
        scorer.embed_images([image])
    assert devices() == {"meta"}


@pytest.mark.slow
def test_scorers_are_offloaded_during_training_steps(run, monkeypatch):
    """Also after the evaluation before training, after each one during training, and in a resumed run."""
    events = []

    def record(owner, name: str) -> None:
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: events.append(name) or method(*args))

    for owner, name in (
        (ClipFeatureExtractor, "move_to_device"),
        (ClipFeatureExtractor, "offload"),
        (DiffusionModule, "training_step"),
    ):
        record(owner, name)
    overrides = [
        "metrics=digits",
        "metrics.distribution_metrics=[]",
        "evaluate_every=1",
        "evaluate_images=1",
        "data.per_digit=1",
    ]
    overrides += ["sampling.images=1", "protocol.images=1"]
    _, folder = run(*overrides, "steps=2")
    run(*overrides, "steps=3", f"resume={folder}", "allow_config_change=true")
    before = [events[number - 1] for number, event in enumerate(events) if event == "training_step"]
    assert before == ["offload"] * 3 and events.count("offload") >= 4 and "move_to_device" in events


def test_embedded_scorers_are_loaded_on_use_and_others_at_once():
    scorers = MetricsConfig("tiny-clip", perceptual="clip").load_scorers()
    assert not {"clip", "perceptual"} & set(vars(scorers)) and not scorers.missing
    scorers.offload()
    assert "clip" not in vars(scorers)
    assert scorers.get_model_names() == {"clip": "tiny-clip", "perceptual": "LPIPS (tiny-clip)"}
    early = MetricsConfig("ViT-B-32", pretrained="openai", perceptual="clip").load_scorers()
    assert list(early.missing) == ["CLIP"] and early.get_model_names() == {}
