"""Each metric against numpy, and its edges."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from sdft.data.dataset import CaptionedImage
from sdft.evaluation.metrics.clip_i import ClassPreservation, ReferenceSimilarity
from sdft.evaluation.metrics.clip_t import ClipT
from sdft.evaluation.metrics.diversity import Diversity
from sdft.evaluation.metrics.drift import BaseDrift, DistributionDrift
from sdft.evaluation.metrics.feature_extractor import FeatureExtractor
from sdft.evaluation.metrics.fid_kid_cmmd import CMMD, FID, KID
from sdft.evaluation.metrics.memorization import NearestTrainingImage
from sdft.evaluation.metrics.zero_shot import ZeroShotAccuracy

RED, GREEN, BLUE = (Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
GREY = Image.new("RGB", (4, 4), (128, 128, 128))


class Eyes(FeatureExtractor):
    """A scorer whose features of a picture are its mean colour, and of a word the colour it names."""

    words = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "reddish": (2, 1, 0)}
    looked = 0

    def forward_batch(self, pictures):
        self.looked += len(pictures)
        return unit(np.array([mean(p) for p in pictures]))

    def embed_texts(self, captions):
        return unit(np.array([self.words[c] for c in captions]))


class Ruler:
    """Perceptual distances that are those of mean colours."""

    def distances(self, ones, others):
        return torch.tensor([np.abs(mean(a) - mean(b)).sum() / 255 for a, b in zip(ones, others, strict=True)])

    def pairwise(self, pictures):
        return torch.stack([self.distances([one] * len(pictures), pictures) for one in pictures])


def mean(picture):
    return np.asarray(picture).reshape(-1, 3).mean(0)


def unit(rows):
    return torch.tensor(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=torch.float32)


def noise(count, seed=0):
    chance = np.random.default_rng(seed)
    return [Image.fromarray(chance.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in range(count)]


def features(pictures):
    rows = np.array([mean(p) for p in pictures])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_clip_t_is_the_mean_cosine_of_picture_and_prompt():
    metric = ClipT(Eyes())
    metric.update([RED, GREY], ["red", "red"])
    metric.update([BLUE], ["reddish"])
    assert metric.compute().item() == pytest.approx((1 + 1 / np.sqrt(3) + 0) / 3, abs=1e-6)


def test_clip_i_is_the_mean_over_all_pairs():
    metric = ReferenceSimilarity(Eyes(), [RED, GREEN, GREY])
    metric.update([RED, BLUE], ["", ""])
    pairs = [1, 0, 1 / np.sqrt(3), 0, 0, 1 / np.sqrt(3)]
    assert metric.compute().item() == pytest.approx(np.mean(pairs), abs=1e-6)


def test_real_vs_real_leaves_out_pairs_of_a_picture_with_itself():  # pitfall 36
    metric = ReferenceSimilarity(Eyes(), [RED, GREEN, GREY])
    assert metric.compute_reference() == pytest.approx(np.mean([0, 1 / np.sqrt(3), 1 / np.sqrt(3)]), abs=1e-6)


def test_subject_and_leak_are_one_number_read_in_two_directions():
    made, real = noise(5), noise(7, seed=1)
    expected = (features(made) @ features(real).T).mean()
    for metric in (ReferenceSimilarity(Eyes(), real), ClassPreservation(Eyes(), real)):
        metric.update(made, [""] * 5)
        assert metric.compute().item() == pytest.approx(expected, abs=1e-5)
    table = features(real) @ features(real).T
    assert ReferenceSimilarity(Eyes(), real).compute_reference() == pytest.approx(
        table[~np.eye(7, dtype=bool)].mean(), abs=1e-5
    )
    assert ReferenceSimilarity(Eyes(), real).higher_is_better and not ClassPreservation(Eyes(), real).higher_is_better


def test_nearest_is_the_largest_cosine_and_one_for_a_copy():
    made, real = noise(5), noise(7, seed=1)
    metric = NearestTrainingImage(Eyes(), real)
    metric.update(made, [""] * 5)
    assert metric.compute().item() == pytest.approx((features(made) @ features(real).T).max(1).mean(), abs=1e-5)
    table = features(real) @ features(real).T
    np.fill_diagonal(table, -1)
    assert metric.compute_reference() == pytest.approx(table.max(1).mean(), abs=1e-5)
    metric.reset()
    metric.update([real[3]], [""])
    assert metric.compute().item() == pytest.approx(1, abs=1e-6)
    assert not metric.higher_is_better


def test_diversity_is_the_mean_over_pairs_of_a_prompt():
    made, prompts = noise(7), ["a"] * 3 + ["b"] * 3 + ["c"]
    metric = Diversity(Ruler(), 3)
    metric.update(made, ["alike"] * 7)
    pair = lambda i, j: np.abs(mean(made[i]) - mean(made[j])).sum() / 255  # noqa: E731
    of_a, of_b = (np.mean([pair(s, s + 1), pair(s, s + 2), pair(s + 1, s + 2)]) for s in (0, 3))
    assert metric.compute().item() == pytest.approx((of_a + of_b) / 2, abs=1e-5)
    assert math.isnan(metric.per_image_values()[6])  # one alone has none
    metric.reset()
    metric.update([RED, RED, RED], ["a"] * 3)
    assert metric.compute() == 0
    real = [CaptionedImage(picture, caption, "") for picture, caption in zip(made, prompts, strict=True)]
    assert Diversity(Ruler(), 3, real).compute_reference() == pytest.approx((of_a + of_b) / 2, abs=1e-5)
    assert Diversity(Ruler(), 3, real[:1]).compute_reference() is None


@pytest.mark.parametrize("scorer", [Eyes(), Ruler()], ids=["cosine", "perceptual"])
def test_drift_is_the_distance_to_the_same_seed_of_the_base(scorer):
    base, made = noise(4), noise(4, seed=1)
    metric = BaseDrift(scorer, base, images=2)
    metric.update(made[:2], ["a", "a"])
    metric.update(made[2:], ["b", "b"])

    def apart(a, b):
        if scorer is metric.scorer and isinstance(scorer, Ruler):
            return np.abs(mean(a) - mean(b)).sum() / 255
        return 1 - (features([a]) @ features([b]).T).item()

    assert metric.compute().item() == pytest.approx(
        np.mean([apart(a, b) for a, b in zip(made, base, strict=True)]), abs=1e-5
    )
    assert metric.compute_reference() == pytest.approx(
        np.mean([apart(base[0], base[1]), apart(base[2], base[3])]), abs=1e-5
    )
    metric.reset()
    metric.update(base, ["a", "a", "b", "b"])
    assert metric.compute().item() == pytest.approx(0, abs=1e-6)
    assert not metric.higher_is_better and BaseDrift(scorer, base, images=1).compute_reference() is None


def test_zero_shot_counts_each_axis_alone():
    answers = {
        "red": {"hue": "warm", "name": "red"},
        "green": {"hue": "cold", "name": "green"},
        "blue": {"hue": "cold", "name": "blue"},
    }
    shares = {}
    for axis in ("hue", "name"):
        metric = ZeroShotAccuracy(Eyes(), answers, axis)
        metric.update([RED, GREEN, RED, BLUE], ["red", "blue", "green", "blue"])
        shares[axis] = metric.compute().item()
    assert shares == {"hue": 0.75, "name": 0.5}


EVERY = {
    "CLIP-T": lambda: ClipT(Eyes()),
    "CLIP-I": lambda: ReferenceSimilarity(Eyes(), [RED]),
    "zero-shot": lambda: ZeroShotAccuracy(Eyes(), {"red": {"a": "b"}}, "a"),
    "nearest": lambda: NearestTrainingImage(Eyes(), [RED]),
    "DIV": lambda: Diversity(Ruler(), 2),
    "drift": lambda: BaseDrift(Eyes(), [], 1),
    "CMMD": lambda: CMMD(Eyes(), [RED]),
    "FID": lambda: FID(Eyes(), [RED]),
    "KID": lambda: KID(Eyes(), [RED]),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_score_of_nothing_is_an_error_not_a_zero(name):
    metric = EVERY[name]()
    metric.update([], [])
    with pytest.raises(ValueError, match="of no pictures"):
        metric.compute()


@pytest.mark.parametrize("name", ["CLIP-I", "nearest", "CMMD"])
def test_one_real_picture_has_nothing_to_be_compared_with(name):
    assert EVERY[name]().compute_reference() is None


def test_scores_start_anew_after_reset():
    metric = ClipT(Eyes())
    metric.update([RED], ["blue"])
    metric.reset()
    metric.update([RED], ["red"])
    assert metric.compute().item() == pytest.approx(1)


def test_a_judge_looks_at_each_picture_once():
    eyes = Eyes(batch_size=2)
    made = noise(5)
    first = eyes.embed_images([*made, made[0], made[0].copy()])
    assert eyes.looked == 5 and torch.equal(first[0], first[5]) and torch.equal(first[0], first[6])
    eyes.embed_images(made)
    assert eyes.looked == 5
    assert torch.allclose(first[:5], torch.tensor(features(made), dtype=torch.float32), atol=1e-6)


def test_cmmd_is_the_formula_and_zero_for_equal_sets():
    made, real = noise(5), noise(7, seed=1)
    metric = CMMD(Eyes(), real)
    metric.update(made[:2], ["", ""])
    metric.update(made[2:], [""] * 3)
    a, b = features(real), features(made)
    k = lambda x, y: np.mean([math.exp(-((p - q) ** 2).sum() / 200) for p in x for q in y])  # noqa: E731
    assert metric.compute().item() == pytest.approx(1000 * (k(a, a) + k(b, b) - 2 * k(a, b)), abs=1e-5)
    metric.reset()
    metric.update(real, [""] * 7)
    assert metric.compute().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", [FID, KID])
def test_a_single_picture_has_no_covariance(kind):
    metric = kind(Eyes(), noise(5))
    metric.update(noise(1), [""])
    assert metric.compute().isnan()


def test_set_drift_is_cmmd_to_the_base():
    base, made = noise(6), noise(6, seed=1)
    found = []
    for metric in (DistributionDrift(Eyes(), base), CMMD(Eyes(), base)):
        metric.update(made, [""] * 6)
        found.append(metric.compute().item())
    assert found[0] == found[1] > 0


def test_fid_is_the_formula():
    made, real = noise(20), noise(30, seed=1)
    metric = FID(Eyes(), real)
    metric.update(made, [""] * 20)
    a, b = features(real).astype(np.float32).astype(float), features(made).astype(np.float32).astype(float)
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * roots
    assert metric.compute().item() == pytest.approx(expected, abs=1e-5)


def test_kid_is_the_formula_when_a_subset_is_all_of_them_and_repeats():
    made, real = noise(9), noise(9, seed=1)
    metric = KID(Eyes(), real)
    metric.update(made, [""] * 9)
    a, b = features(real), features(made)
    k = lambda x, y: (x @ y.T / 3 + 1) ** 3  # noqa: E731
    off = ~np.eye(9, dtype=bool)
    expected = 1000 * (k(a, a)[off].mean() + k(b, b)[off].mean() - 2 * k(a, b).mean())
    before = torch.get_rng_state()
    assert metric.compute().item() == pytest.approx(expected, abs=1e-3)
    assert torch.equal(torch.get_rng_state(), before)
