"""Each metric against numpy, and edge cases."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from sdft.data.dataset import CaptionedImage, EvaluationSpec
from sdft.evaluation.metrics.base import EvaluationData
from sdft.evaluation.metrics.clip_i import ClassPreservation, ReferenceSimilarity
from sdft.evaluation.metrics.clip_t import ClipT
from sdft.evaluation.metrics.diversity import Diversity
from sdft.evaluation.metrics.drift import BaseDrift, DistributionDrift
from sdft.evaluation.metrics.feature_extractor import FeatureExtractor, ScorerUnavailableError
from sdft.evaluation.metrics.fid_kid_cmmd import CMMD, FID, KID
from sdft.evaluation.metrics.memorization import NearestTrainingImage
from sdft.evaluation.metrics.zero_shot import ZeroShotAccuracy

RED, GREEN, BLUE = (Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
GREY = Image.new("RGB", (4, 4), (128, 128, 128))


def set_up(metric, scorer=None, training=(), real=(), base=(), images=1, labels=None):
    """The metric as an evaluation with these images uses it, by default with colour features."""

    def add_captions(images):
        return [one if isinstance(one, CaptionedImage) else CaptionedImage(one, "", "") for one in images]

    data = EvaluationData(images, add_captions(training), add_captions(real), base_images=list(base))
    data.evaluation_spec = labels and EvaluationSpec([], labels)
    metric.setup(scorer or ColourFeatures(), data)
    return metric


class ColourFeatures(FeatureExtractor):
    """The features of an image are its mean colour, those of a text the colour it names."""

    colours = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "reddish": (2, 1, 0)}
    num_forward_images = 0

    def forward_batch(self, images):
        self.num_forward_images += len(images)
        return normalize_rows(np.array([mean_colour(p) for p in images]))

    def embed_texts(self, captions):
        return normalize_rows(np.array([self.colours[c] for c in captions]))


class ColourDistance:
    """The perceptual distance is that of the mean colours."""

    def compute_distances(self, ones, others):
        return torch.tensor(
            [np.abs(mean_colour(a) - mean_colour(b)).sum() / 255 for a, b in zip(ones, others, strict=True)]
        )

    def compute_pairwise(self, images):
        return torch.stack([self.compute_distances([one] * len(images), images) for one in images])


def mean_colour(image):
    return np.asarray(image).reshape(-1, 3).mean(0)


def normalize_rows(rows):
    return torch.tensor(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=torch.float32)


def create_noise_images(count, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in range(count)]


def compute_features(images):
    rows = np.array([mean_colour(p) for p in images])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_clip_t_is_the_mean_cosine_of_image_and_prompt():
    metric = set_up(ClipT())
    metric.update([RED, GREY], ["red", "red"])
    metric.update([BLUE], ["reddish"])
    assert metric.compute().item() == pytest.approx((1 + 1 / np.sqrt(3) + 0) / 3, abs=1e-6)


def test_clip_i_is_the_mean_over_all_pairs():
    metric = set_up(ReferenceSimilarity(), training=[RED, GREEN, GREY])
    metric.update([RED, BLUE], ["", ""])
    pairs = [1, 0, 1 / np.sqrt(3), 0, 0, 1 / np.sqrt(3)]
    assert metric.compute().item() == pytest.approx(np.mean(pairs), abs=1e-6)


def test_real_vs_real_excludes_self_pairs():  # pitfall 36
    metric = set_up(ReferenceSimilarity(), training=[RED, GREEN, GREY])
    assert metric.compute_reference() == pytest.approx(np.mean([0, 1 / np.sqrt(3), 1 / np.sqrt(3)]), abs=1e-6)


def test_similarity_and_leakage_are_the_same_number_with_opposite_directions():
    generated, real = create_noise_images(5), create_noise_images(7, seed=1)
    expected = (compute_features(generated) @ compute_features(real).T).mean()
    for metric in [set_up(kind(), training=real) for kind in (ReferenceSimilarity, ClassPreservation)]:
        metric.update(generated, [""] * 5)
        assert metric.compute().item() == pytest.approx(expected, abs=1e-5)
    table = compute_features(real) @ compute_features(real).T
    assert set_up(ReferenceSimilarity(), training=real).compute_reference() == pytest.approx(
        table[~np.eye(7, dtype=bool)].mean(), abs=1e-5
    )
    assert ReferenceSimilarity.higher_is_better and not ClassPreservation.higher_is_better


def test_nearest_is_the_largest_cosine_and_one_for_a_copy():
    generated, real = create_noise_images(5), create_noise_images(7, seed=1)
    metric = set_up(NearestTrainingImage(), training=real)
    metric.update(generated, [""] * 5)
    assert metric.compute().item() == pytest.approx(
        (compute_features(generated) @ compute_features(real).T).max(1).mean(), abs=1e-5
    )
    table = compute_features(real) @ compute_features(real).T
    np.fill_diagonal(table, -1)
    assert metric.compute_reference() == pytest.approx(table.max(1).mean(), abs=1e-5)
    metric.reset()
    metric.update([real[3]], [""])
    assert metric.compute().item() == pytest.approx(1, abs=1e-6)
    assert not metric.higher_is_better


def test_diversity_is_the_mean_over_pairs_of_a_prompt():
    generated, prompts = create_noise_images(7), ["a"] * 3 + ["b"] * 3 + ["c"]
    metric = set_up(Diversity(), ColourDistance(), images=3)
    metric.update(generated, ["alike"] * 7)
    pair_distance = lambda i, j: np.abs(mean_colour(generated[i]) - mean_colour(generated[j])).sum() / 255  # noqa: E731
    mean_a, mean_b = (
        np.mean([pair_distance(s, s + 1), pair_distance(s, s + 2), pair_distance(s + 1, s + 2)]) for s in (0, 3)
    )
    assert metric.compute().item() == pytest.approx((mean_a + mean_b) / 2, abs=1e-5)
    assert math.isnan(metric.collect()[6])  # a single image has no pairs
    metric.reset()
    metric.update([RED, RED, RED], ["a"] * 3)
    assert metric.compute() == 0
    real = [CaptionedImage(image, caption, "") for image, caption in zip(generated, prompts, strict=True)]
    assert set_up(Diversity(), ColourDistance(), real=real, images=3).compute_reference() == pytest.approx(
        (mean_a + mean_b) / 2, abs=1e-5
    )
    assert set_up(Diversity(), ColourDistance(), real=real[:1], images=3).compute_reference() is None


@pytest.mark.parametrize("scorer", [ColourFeatures(), ColourDistance()], ids=["cosine", "perceptual"])
def test_drift_is_the_distance_to_the_base_image_of_the_same_seed(scorer):
    base, generated = create_noise_images(4), create_noise_images(4, seed=1)
    metric = set_up(BaseDrift(), scorer, base=base, images=2)
    metric.update(generated[:2], ["a", "a"])
    metric.update(generated[2:], ["b", "b"])

    def expected_distance(a, b):
        if scorer is metric.scorer and isinstance(scorer, ColourDistance):
            return np.abs(mean_colour(a) - mean_colour(b)).sum() / 255
        return 1 - (compute_features([a]) @ compute_features([b]).T).item()

    assert metric.compute().item() == pytest.approx(
        np.mean([expected_distance(a, b) for a, b in zip(generated, base, strict=True)]), abs=1e-5
    )
    assert metric.compute_reference() == pytest.approx(
        np.mean([expected_distance(base[0], base[1]), expected_distance(base[2], base[3])]), abs=1e-5
    )
    metric.reset()
    metric.update(base, ["a", "a", "b", "b"])
    assert metric.compute().item() == pytest.approx(0, abs=1e-6)
    assert not metric.higher_is_better and set_up(BaseDrift(), scorer, base=base).compute_reference() is None


def test_zero_shot_accuracy_per_axis():
    labels = {
        "red": {"hue": "warm", "name": "red"},
        "green": {"hue": "cold", "name": "green"},
        "blue": {"hue": "cold", "name": "blue"},
    }
    accuracies = {}
    data = EvaluationData(evaluation_spec=EvaluationSpec([], labels))
    for name, metric in ZeroShotAccuracy().build("zero-shot", ColourFeatures(), data).items():
        metric.update([RED, GREEN, RED, BLUE], ["red", "blue", "green", "blue"])
        accuracies[name] = metric.compute().item()
    assert accuracies == {"hue": 0.75, "name": 0.5, "hue and name": 0.5}
    assert ZeroShotAccuracy().build("zero-shot", ColourFeatures(), EvaluationData()) == {}


METRICS = {
    "CLIP-T": lambda: set_up(ClipT()),
    "CLIP-I": lambda: set_up(ReferenceSimilarity(), training=[RED]),
    "zero-shot": lambda: set_up(ZeroShotAccuracy(), labels={"red": {"a": "b"}}),
    "nearest": lambda: set_up(NearestTrainingImage(), training=[RED]),
    "DIV": lambda: set_up(Diversity(), ColourDistance(), images=2),
    "drift": lambda: set_up(BaseDrift()),
    "CMMD": lambda: set_up(CMMD(), real=[RED]),
    "FID": lambda: set_up(FID(), real=[RED]),
    "KID": lambda: set_up(KID(), real=[RED]),
}


@pytest.mark.parametrize("name", METRICS)
def test_score_without_images_is_an_error(name):
    metric = METRICS[name]()
    metric.update([], [])
    with pytest.raises(ValueError, match=f"{type(metric).__name__}: "):
        metric.compute()


@pytest.mark.parametrize("name", ["CLIP-I", "nearest", "CMMD"])
def test_single_real_image_has_no_reference_score(name):
    assert METRICS[name]().compute_reference() is None


def test_prompt_metrics_score_real_images_with_their_captions():
    metric, data = (
        ClipT(),
        EvaluationData(captioned_images=[CaptionedImage(RED, "red", ""), CaptionedImage(RED, "blue", "")]),
    )
    metric.setup(ColourFeatures(), data)
    assert metric.compute_reference() == pytest.approx(0.5)
    assert set_up(ClipT()).compute_reference() is None


def test_distances_without_real_images_are_reported():
    with pytest.raises(ScorerUnavailableError, match="no real images"):
        set_up(CMMD())


def test_a_metric_is_copied_for_each_use():
    configured = ReferenceSimilarity()
    data = [EvaluationData(training_images=[CaptionedImage(image, "", "")]) for image in (RED, BLUE)]
    one, other = (configured.build("CLIP-I", ColourFeatures(), each)["CLIP-I"] for each in data)
    for metric in (one, other):
        metric.update([RED], [""])
    assert (one.compute(), other.compute()) == (1, 0) and not configured.collected


def test_reset_clears_the_scores():
    metric = set_up(ClipT())
    metric.update([RED], ["blue"])
    metric.reset()
    metric.update([RED], ["red"])
    assert metric.compute().item() == pytest.approx(1)


def test_features_are_computed_once_per_image():
    extractor = ColourFeatures(batch_size=2)
    generated = create_noise_images(5)
    first = extractor.embed_images([*generated, generated[0], generated[0].copy()])
    assert extractor.num_forward_images == 5 and torch.equal(first[0], first[5]) and torch.equal(first[0], first[6])
    extractor.embed_images(generated)
    assert extractor.num_forward_images == 5
    assert torch.allclose(first[:5], torch.tensor(compute_features(generated), dtype=torch.float32), atol=1e-6)


def test_cmmd_is_the_formula_and_zero_for_equal_sets():
    generated, real = create_noise_images(5), create_noise_images(7, seed=1)
    metric = set_up(CMMD(), real=real)
    metric.update(generated[:2], ["", ""])
    metric.update(generated[2:], [""] * 3)
    a, b = compute_features(real), compute_features(generated)
    kernel = lambda x, y: np.mean([math.exp(-((p - q) ** 2).sum() / 200) for p in x for q in y])  # noqa: E731
    assert metric.compute().item() == pytest.approx(1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)), abs=1e-5)
    metric.reset()
    metric.update(real, [""] * 7)
    assert metric.compute().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", [FID, KID])
def test_single_image_has_no_covariance(kind):
    metric = set_up(kind(), real=create_noise_images(5))
    metric.update(create_noise_images(1), [""])
    assert metric.compute().isnan()


def test_distribution_drift_is_cmmd_to_the_base():
    base, generated = create_noise_images(6), create_noise_images(6, seed=1)
    values = []
    for metric in (set_up(DistributionDrift(), base=base), set_up(CMMD(), real=base)):
        metric.update(generated, [""] * 6)
        values.append(metric.compute().item())
    assert values[0] == values[1] > 0


def test_fid_is_the_formula():
    generated, real = create_noise_images(20), create_noise_images(30, seed=1)
    metric = set_up(FID(), real=real)
    metric.update(generated, [""] * 20)
    a, b = (
        compute_features(real).astype(np.float32).astype(float),
        compute_features(generated).astype(np.float32).astype(float),
    )
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * roots
    assert metric.compute().item() == pytest.approx(expected, abs=1e-5)


def test_kid_is_the_formula_for_full_subsets_and_keeps_the_rng_state():
    generated, real = create_noise_images(9), create_noise_images(9, seed=1)
    metric = set_up(KID(), real=real)
    metric.update(generated, [""] * 9)
    a, b = compute_features(real), compute_features(generated)
    kernel = lambda x, y: (x @ y.T / 3 + 1) ** 3  # noqa: E731
    off_diagonal = ~np.eye(9, dtype=bool)
    expected = 1000 * (kernel(a, a)[off_diagonal].mean() + kernel(b, b)[off_diagonal].mean() - 2 * kernel(a, b).mean())
    before = torch.get_rng_state()
    assert metric.compute().item() == pytest.approx(expected, abs=1e-3)
    assert torch.equal(torch.get_rng_state(), before)
