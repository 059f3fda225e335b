"""Intervals, differences, and which of two scores is better."""

import math

import numpy as np
import pytest
import torch

from sdft.evaluation.metrics.base import ImageMetric
from sdft.evaluation.statistics import (
    bootstrap_interval,
    compute_paired_difference,
    format_score,
    format_score_table,
    orient_score,
    summarize_metric,
)


class Given(ImageMetric):
    def score_images(self, pictures, prompts):
        return torch.tensor(pictures)


def score(values, images):
    metric = Given()
    metric.update(values, [""] * len(values))
    return summarize_metric(metric, images)


def test_an_interval_over_many_prompts_is_that_of_the_mean():
    chance = np.random.default_rng(0)
    values = torch.tensor(chance.normal(5, 2, 400))
    low, high = bootstrap_interval(values, images=1)
    error = values.std().item() / 20
    assert low == pytest.approx(values.mean().item() - 1.96 * error, abs=0.05)
    assert high == pytest.approx(values.mean().item() + 1.96 * error, abs=0.05)
    assert bootstrap_interval(values, images=1) == (low, high)


def test_prompts_that_differ_widen_it_and_seeds_alone_do_not_narrow_it():
    """Ten prompts of means far apart: a hundred seeds each tell no more about other prompts."""
    means = torch.linspace(0, 9, 10)
    few, many = (means.repeat_interleave(images) for images in (2, 100))
    width = lambda images, values: float(np.subtract(*bootstrap_interval(values, images)[::-1]))  # noqa: E731
    assert width(100, many) == pytest.approx(width(2, few), rel=0.1)
    assert width(2, few) > 3
    assert width(2, few[:8]) == 0  # four prompts cannot tell of others: of their seeds alone


@pytest.mark.parametrize(
    ("prompts", "images", "between"), [(6, 8, 1.0), (25, 4, 0.0), (25, 4, 1.0), (1, 16, 0.0), (3, 8, 0.0)]
)
def test_nineteen_of_twenty_intervals_hold_the_truth(prompts, images, between):
    chance, held = np.random.default_rng(0), 0
    for _ in range(200):
        means = chance.normal(0, between, (prompts, 1)) if prompts >= 5 else np.zeros((prompts, 1))
        low, high = bootstrap_interval(torch.tensor(means + chance.normal(0, 1, (prompts, images))).flatten(), images)
        held += low <= 0 <= high
    assert 0.90 <= held / 200 <= 0.99


def test_one_value_has_no_interval_and_those_without_a_value_are_counted():
    assert bootstrap_interval(torch.tensor([1.0]), 1) is None
    found = score([1.0, math.nan, 3.0, math.nan], 2)
    assert (found["value"], found["count"], found["of"]) == (2.0, 2, 4)
    assert found["per_prompt"] == [1.0, 3.0] and found["each"] == [1.0, None, 3.0, None]
    nothing = score([math.nan, math.nan], 1)
    assert nothing["value"] is None and nothing["low"] is None and nothing["count"] == 0


def test_a_difference_over_the_same_seeds_is_surer_than_two_scores():
    chance = np.random.default_rng(0)
    base = chance.normal(0, 5, 60)
    one, other = score(base.tolist(), 4), score((base + chance.normal(1, 0.1, 60)).tolist(), 4)
    gain = compute_paired_difference(one, other, 4)
    assert gain["low"] < 1 < gain["high"] and gain["high"] - gain["low"] < 0.2
    assert one["high"] > other["low"]  # told apart by nobody who looks at the two intervals
    assert compute_paired_difference({"value": 1.0}, {"value": 2.0}, 4) is None


def test_what_could_not_be_computed_is_worse_than_anything():  # never 0
    assert orient_score(None, True) == orient_score(math.nan, False) == -math.inf
    assert orient_score(-1e9, True) > orient_score(None, True) and orient_score(1e9, False) > orient_score(None, False)
    assert orient_score(0.2, False) > orient_score(0.3, False) and orient_score(0.3, True) > orient_score(0.2, True)


def report(**missing):
    forms = {"number_format": "{:.2f}", "higher_is_better": True}

    def scores(value, count):
        return {"prompts": {"faces": {"value": value, "low": 0.1, "high": 0.9, "count": count, "of": 4}}}

    return {
        "images": 2,
        "groups": {"prompts": ["a", "b"]},
        "metrics": {"prompts": {"faces": forms}},
        "states": [{"label": "base", "scores": scores(None, 0)}, {"label": "fine-tuned", "scores": scores(0.5, 3)}],
        "reference": {"prompts": {"faces": 0.75}},
        "missing": missing,
    }


def test_the_table_has_intervals_references_and_what_is_missing():
    lines = format_score_table(report(DINO="fetch it")).splitlines()
    assert lines[0].split() == ["base", "fine-tuned", "95", "%", "real"]
    assert lines[1] == "prompts: 2 × 2"
    assert lines[2].split() == ["faces", "–", "0.50", "0.10", "–", "0.90", "0.75", "of", "3", "in", "4"]
    assert lines[3].split(maxsplit=1) == ["DINO", "not measured: fetch it"]
    assert format_score(None, "{:.2f}", "") == ""
