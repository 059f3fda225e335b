"""Confidence intervals, paired differences, and the order of scores."""

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


class IdentityMetric(ImageMetric):
    """The values are passed as images."""

    def score_images(self, images, prompts):
        return torch.tensor(images)


def compute_score(values, images):
    metric = IdentityMetric()
    metric.update(values, [""] * len(values))
    return summarize_metric(metric, images)


def test_interval_over_many_prompts_matches_the_normal_interval():
    rng = np.random.default_rng(0)
    values = torch.tensor(rng.normal(5, 2, 400))
    low, high = bootstrap_interval(values, images=1)
    error = values.std().item() / 20
    assert low == pytest.approx(values.mean().item() - 1.96 * error, abs=0.05)
    assert high == pytest.approx(values.mean().item() + 1.96 * error, abs=0.05)
    assert bootstrap_interval(values, images=1) == (low, high)


def test_variance_between_prompts_widens_the_interval_and_more_seeds_do_not_narrow_it():
    """Ten prompts with distant means: a hundred seeds each say no more about other prompts than two."""
    means = torch.linspace(0, 9, 10)
    few, many = (means.repeat_interleave(images) for images in (2, 100))
    width = lambda images, values: float(np.subtract(*bootstrap_interval(values, images)[::-1]))  # noqa: E731
    assert width(100, many) == pytest.approx(width(2, few), rel=0.1)
    assert width(2, few) > 3
    assert width(2, few[:8]) == 0  # four prompts: over their seeds only


@pytest.mark.parametrize(
    ("prompts", "images", "between"), [(6, 8, 1.0), (25, 4, 0.0), (25, 4, 1.0), (1, 16, 0.0), (3, 8, 0.0)]
)
def test_interval_coverage_is_95_percent(prompts, images, between):
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        means = rng.normal(0, between, (prompts, 1)) if prompts >= 5 else np.zeros((prompts, 1))
        low, high = bootstrap_interval(torch.tensor(means + rng.normal(0, 1, (prompts, images))).flatten(), images)
        covered += low <= 0 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_one_value_has_no_interval_and_nan_values_are_counted():
    assert bootstrap_interval(torch.tensor([1.0]), 1) is None
    score = compute_score([1.0, math.nan, 3.0, math.nan], 2)
    assert (score["value"], score["count"], score["of"]) == (2.0, 2, 4)
    assert score["per_prompt"] == [1.0, 3.0] and score["per_image"] == [1.0, None, 3.0, None]
    empty = compute_score([math.nan, math.nan], 1)
    assert empty["value"] is None and empty["low"] is None and empty["count"] == 0


def test_paired_difference_has_a_narrower_interval_than_two_scores():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 5, 60)
    one, other = compute_score(base.tolist(), 4), compute_score((base + rng.normal(1, 0.1, 60)).tolist(), 4)
    gain = compute_paired_difference(one, other, 4)
    assert gain["low"] < 1 < gain["high"] and gain["high"] - gain["low"] < 0.2
    assert one["high"] > other["low"]  # the two intervals overlap
    assert compute_paired_difference({"value": 1.0}, {"value": 2.0}, 4) is None


def test_undefined_scores_are_worst():  # never 0
    assert orient_score(None, True) == orient_score(math.nan, False) == -math.inf
    assert orient_score(-1e9, True) > orient_score(None, True) and orient_score(1e9, False) > orient_score(None, False)
    assert orient_score(0.2, False) > orient_score(0.3, False) and orient_score(0.3, True) > orient_score(0.2, True)


def build_report(**missing):
    facts = {"number_format": "{:.2f}", "higher_is_better": True}

    def scores(value, count):
        return {"prompts": {"faces": {"value": value, "low": 0.1, "high": 0.9, "count": count, "of": 4}}}

    return {
        "images": 2,
        "groups": {"prompts": ["a", "b"]},
        "metrics": {"prompts": {"faces": facts}},
        "states": [{"label": "base", "scores": scores(None, 0)}, {"label": "fine-tuned", "scores": scores(0.5, 3)}],
        "reference": {"prompts": {"faces": 0.75}},
        "missing": missing,
    }


def test_table_has_intervals_references_and_missing_metrics():
    lines = format_score_table(build_report(DINO="fetch it"))
    assert lines[0].split() == ["base", "fine-tuned", "95", "%", "real"]
    assert lines[1] == "prompts: 2 × 2"
    assert lines[2].split() == ["faces", "–", "0.50", "0.10", "–", "0.90", "0.75", "3", "of", "4"]
    assert lines[3].split(maxsplit=1) == ["DINO", "not measured: fetch it"]
    assert format_score(None, "{:.2f}", "") == ""
