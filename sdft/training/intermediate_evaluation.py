"""Scorers of a run, and the evaluation during training that uses them; only rank 0 loads and computes."""

from dataclasses import dataclass, replace

from omegaconf import DictConfig
from PIL import Image

import sdft.distributed as processes
from sdft.evaluation.evaluator import Evaluator
from sdft.evaluation.protocol import (
    PROMPTS_GROUP,
    PromptGroup,
    build_prompt_groups,
    build_protocol,
    select_evaluation_spec,
)
from sdft.evaluation.statistics import format_score_name


@dataclass
class IntermediateEvaluation:
    """The evaluation during training. All ranks sample, rank 0 scores: `evaluator` is None on the others.

    `images` is the number per prompt; `directions` says of each score, by group and name, whether higher is better.
    """

    groups: list[PromptGroup]
    images: int
    directions: dict[str, dict[str, bool | None]]
    evaluator: Evaluator | None


def load_run_scorers(cfg: DictConfig, parts: dict, device):
    """The scorers on rank 0; None on other ranks, and without metrics."""
    if not cfg.metrics or processes.rank():
        return None
    return parts["metrics"].load_scorers(str(device))


def build_intermediate_evaluation(cfg: DictConfig, scorers, source, training_source) -> IntermediateEvaluation:
    """The evaluation during training, with fewer images per prompt than the final one; collective.

    Rank 0 raises `ValueError` when `checkpoint_metric` is none of its scores.
    """
    if not cfg.metrics:
        raise ValueError(
            f"evaluate_every={cfg.evaluate_every}: no metrics; choose metrics=clip, or metrics=digits for digits"
        )
    evaluation_spec, protocol = source.evaluation_spec(), replace(build_protocol(cfg), images=cfg.evaluate_images)
    groups = build_prompt_groups(cfg, protocol, evaluation_spec, source)
    evaluator, directions = None, None
    if processes.rank() == 0:
        evaluation_spec = select_evaluation_spec(evaluation_spec, groups)
        evaluator = Evaluator(scorers, protocol, groups, training_source, evaluation_spec)
        evaluator.build_metrics({group.name: [Image.new("RGB", (8, 8))] for group in groups})
        directions = {
            group: {name: metric.higher_is_better for name, metric in metrics.items()}
            for group, metrics in evaluator.metrics.items()
        }
        check_checkpoint_metric(cfg.checkpoint_metric, directions, scorers.missing)
    return IntermediateEvaluation(groups, protocol.images, processes.broadcast(directions), evaluator)


def split_metric_key(monitor: str) -> tuple[str, str]:
    """Group and name of a score; the group defaults to the prompts."""
    group, slash, name = monitor.rpartition("/")
    return (group, name) if slash else (PROMPTS_GROUP, monitor)


def check_checkpoint_metric(monitor: str | None, directions: dict[str, dict], missing_scorers: dict[str, str]) -> None:
    """`ValueError` when the evaluation does not compute the score `monitor`."""
    if monitor is None:
        return
    available = [format_score_name(group, name) for group, names in directions.items() for name in names]
    if format_score_name(*split_metric_key(monitor)) not in available:
        missing = "".join(f"; {name} not measured: {reason}" for name, reason in missing_scorers.items())
        raise ValueError(f"checkpoint_metric={monitor}: choose one of {', '.join(available)}{missing}")
