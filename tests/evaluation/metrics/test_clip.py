"""tiny-clip is an open_clip model, tells the world's pictures apart, and its text tower is tiny-sd's."""

import pytest
import torch

from sdft.data.digits import Digits, InkedDigits
from sdft.evaluation.metrics.clip import ClipFeatureExtractor
from sdft.evaluation.metrics.zero_shot import ZeroShotAccuracy
from sdft.evaluation.metrics_config import MetricsConfig
from sdft.training.module import DiffusionModule


@pytest.fixture(scope="module")
def scorer():
    return ClipFeatureExtractor("tiny-clip")


def test_features_are_unit_vectors_whatever_the_batch(scorer):
    pictures = [InkedDigits()[i].image for i in range(5)]
    features = scorer.embed_images(pictures)
    scorer.batch_size, scorer.feature_cache = 2, {}
    assert torch.allclose(scorer.embed_images(pictures), features, atol=1e-5)
    assert torch.allclose(features.norm(dim=1), torch.ones(5), atol=1e-5)
    scorer.batch_size = 64


def test_the_judge_is_right_about_real_pictures(scorer):  # pitfall 36: what the scores are compared with
    source = Digits(digits=list(range(10)), per_digit=12)
    answers = source.evaluation_spec().caption_labels
    for axis, least in (("style", 0.99), ("digit", 0.93)):
        metric = ZeroShotAccuracy(scorer, answers, axis)
        metric.update([source[i].image for i in range(len(source))], source.captions())
        assert metric.compute() >= least


def test_the_text_tower_is_that_of_tiny_sd(scorer):
    from sdft.models.loading import load_stable_diffusion

    model = load_stable_diffusion("tiny-sd")
    ids = model.tokenize(["a handwritten three in red ink on white paper"])
    hidden = model.condition(ids)[0, ids[0].tolist().index(model.tokenizer.eos_token_id)]
    projected = hidden @ scorer.model.text_projection
    expected = scorer.model.encode_text(scorer.tokenizer(["a handwritten three in red ink on white paper"]))[0]
    assert torch.allclose(projected, expected, atol=1e-4)


def test_an_unknown_judge_is_refused():
    with pytest.raises(ValueError, match="metrics.clip=ViT-X: no such folder or open_clip model"):
        ClipFeatureExtractor("ViT-X")


def test_missing_weights_are_told_in_one_line():
    with pytest.raises(ValueError, match="metrics.clip=ViT-B-32: its weights cannot be read"):
        ClipFeatureExtractor("ViT-B-32", pretrained="openai")


def test_a_judge_lies_on_its_device_only_while_it_is_asked():
    scorer, picture = ClipFeatureExtractor("tiny-clip", device="meta"), InkedDigits()[0].image
    where = lambda: {parameter.device.type for parameter in scorer.model.parameters()}  # noqa: E731
    assert where() == {"cpu"}
    with pytest.raises(NotImplementedError):  # nothing of that device can be looked at
        scorer.embed_images([picture])
    assert where() == {"meta"}


def test_judges_rest_whenever_a_step_is_trained(run, monkeypatch):
    """After what is asked before training, after each evaluation on the way, and in a run that goes on."""
    events = []

    def told(owner, name: str) -> None:
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: events.append(name) or method(*given))

    for owner, name in (
        (ClipFeatureExtractor, "move_to_device"),
        (ClipFeatureExtractor, "offload"),
        (DiffusionModule, "training_step"),
    ):
        told(owner, name)
    words = [
        "metrics=digits",
        "metrics.distribution_metrics=[]",
        "evaluate_every=1",
        "evaluate_images=1",
        "data.per_digit=1",
    ]
    words += ["sampling.images=1", "protocol.images=1"]
    _, folder = run(*words, "steps=2")
    run(*words, "steps=3", f"resume={folder}", "allow_config_change=true")
    before = [events[number - 1] for number, event in enumerate(events) if event == "training_step"]
    assert before == ["offload"] * 3 and events.count("offload") >= 4 and "move_to_device" in events


def test_embedded_judges_are_opened_when_they_are_asked_and_others_before():
    judges = MetricsConfig("tiny-clip", perceptual="clip").load_scorers()
    assert not {"clip", "perceptual"} & set(vars(judges)) and not judges.missing
    judges.offload()
    assert "clip" not in vars(judges)
    assert judges.get_model_names() == {"clip": "tiny-clip", "perceptual": "LPIPS (tiny-clip)"}
    early = MetricsConfig("ViT-B-32", pretrained="openai", perceptual="clip").load_scorers()
    assert list(early.missing) == ["CLIP"] and early.get_model_names() == {}
