"""Evaluation during training in several processes: rank 0 alone loads the scorers and the training images."""

from types import SimpleNamespace

import pytest
from conftest import compose_config
from hydra.utils import instantiate

import sdft.distributed as processes
from sdft.training.intermediate_evaluation import build_intermediate_evaluation, load_run_scorers

OVERRIDES = ["metrics=digits", "evaluate_every=1", "data.digits=[3]", "data.per_digit=1", "checkpoint_metric=CLIP-T"]


@pytest.fixture
def config():
    return compose_config(*OVERRIDES)


def test_other_ranks_know_the_scores_and_load_nothing(config, monkeypatch):
    source, parts = instantiate(config.data), {"metrics": instantiate(config.metrics)}
    first = build_intermediate_evaluation(config, load_run_scorers(config, parts, "cpu"), source, source)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    monkeypatch.setattr(processes, "broadcast", lambda value: first.directions)
    parts["metrics"] = SimpleNamespace(load_scorers=pytest.fail)
    other = build_intermediate_evaluation(config, load_run_scorers(config, parts, "cpu"), source, None)
    assert other.evaluator is None and first.evaluator
    assert (other.groups, other.images, other.directions) == (first.groups, first.images, first.directions)
    assert first.directions["prompts"]["CLIP-T"] is True


def test_a_checkpoint_metric_that_is_not_computed_is_refused(config):
    config.checkpoint_metric = "CLIP-X"
    source, parts = instantiate(config.data), {"metrics": instantiate(config.metrics)}
    with pytest.raises(ValueError, match="checkpoint_metric=CLIP-X: "):
        build_intermediate_evaluation(config, load_run_scorers(config, parts, "cpu"), source, source)
