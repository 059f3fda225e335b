"""Each metric against numpy, and its edges."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from sdft.metrics.prompt import PromptScore
from sdft.metrics.subject import SubjectScore
from sdft.metrics.zero_shot import ZeroShot

RED, GREEN, BLUE = (Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
GREY = Image.new("RGB", (4, 4), (128, 128, 128))


class Eyes:
    """A judge whose features of a picture are its mean colour, and of a word the colour it names."""

    words = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "reddish": (2, 1, 0)}

    def images(self, pictures):
        return unit(np.array([np.asarray(p).reshape(-1, 3).mean(0) for p in pictures]))

    def texts(self, captions):
        return unit(np.array([self.words[c] for c in captions]))


def unit(rows):
    return torch.tensor(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=torch.float32)


def test_clip_t_is_the_mean_cosine_of_picture_and_prompt():
    metric = PromptScore(Eyes())
    metric.update([RED, GREY], ["red", "red"])
    metric.update([BLUE], ["reddish"])
    assert metric.compute().item() == pytest.approx((1 + 1 / np.sqrt(3) + 0) / 3, abs=1e-6)


def test_clip_i_is_the_mean_over_all_pairs():
    metric = SubjectScore(Eyes(), [RED, GREEN, GREY])
    metric.update([RED, BLUE], ["", ""])
    pairs = [1, 0, 1 / np.sqrt(3), 0, 0, 1 / np.sqrt(3)]
    assert metric.compute().item() == pytest.approx(np.mean(pairs), abs=1e-6)


def test_real_vs_real_leaves_out_pairs_of_a_picture_with_itself():  # pitfall 36
    metric = SubjectScore(Eyes(), [RED, GREEN, GREY])
    assert metric.real_vs_real() == pytest.approx(np.mean([0, 1 / np.sqrt(3), 1 / np.sqrt(3)]), abs=1e-6)


def test_zero_shot_counts_each_axis_alone():
    answers = {
        "red": {"hue": "warm", "name": "red"},
        "green": {"hue": "cold", "name": "green"},
        "blue": {"hue": "cold", "name": "blue"},
    }
    shares = {}
    for axis in ("hue", "name"):
        metric = ZeroShot(Eyes(), answers, axis)
        metric.update([RED, GREEN, RED, BLUE], ["red", "blue", "green", "blue"])
        shares[axis] = metric.compute().item()
    assert shares == {"hue": 0.75, "name": 0.5}


@pytest.mark.parametrize(
    "metric", [PromptScore(Eyes()), SubjectScore(Eyes(), [RED]), ZeroShot(Eyes(), {"red": {"a": "b"}}, "a")]
)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_score_of_nothing_is_an_error_not_a_zero(metric):
    with pytest.raises(ValueError, match="of no pictures"):
        metric.compute()


def test_scores_start_anew_after_reset():
    metric = PromptScore(Eyes())
    metric.update([RED], ["blue"])
    metric.reset()
    metric.update([RED], ["red"])
    assert metric.compute().item() == pytest.approx(1)


def test_cmmd_is_the_formula_and_zero_for_equal_sets():
    from sdft.metrics.distribution import discrepancy

    torch.manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(n, 8) + shift, dim=1) for n, shift in ((5, 0.0), (7, 1.0)))
    k = lambda x, y: sum(math.exp(-float((p - q).square().sum()) / 200) for p in x for q in y) / (len(x) * len(y))  # noqa: E731
    assert discrepancy(a, b).item() == pytest.approx(1000 * (k(a, a) + k(b, b) - 2 * k(a, b)), rel=1e-3)
    assert discrepancy(a, a).item() == pytest.approx(0, abs=1e-6)
