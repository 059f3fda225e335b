"""Scorers of a run, and the evaluator that uses them during training."""

from dataclasses import replace

from omegaconf import DictConfig

import sdft.distributed as processes


def load_run_scorers(cfg: DictConfig, parts: dict, device):
    """The scorers that this rank needs: all ranks during training, rank 0 at the end; None without metrics."""
    if not cfg.metrics or not (parts["training"].evaluate_every or processes.rank() == 0):
        return None
    return parts["metrics"].load_scorers(str(device) if processes.rank() == 0 else "cpu")


def build_intermediate_evaluator(cfg: DictConfig, scorers, source, training_source):
    """The evaluator used during training, with fewer images per prompt than the final evaluation."""
    from sdft.evaluation.evaluator import Evaluator
    from sdft.evaluation.protocol import build_prompt_groups, build_protocol, select_evaluation_spec
    from sdft.training.callbacks.evaluation import check_checkpoint_metric

    if scorers is None:
        raise ValueError(
            f"evaluate_every={cfg.evaluate_every}: no metrics; choose metrics=clip, or metrics=digits for digits"
        )
    evaluation_spec, protocol = source.evaluation_spec(), replace(build_protocol(cfg), images=cfg.evaluate_images)
    groups = build_prompt_groups(cfg, protocol, evaluation_spec, source)
    evaluation_spec = select_evaluation_spec(evaluation_spec, groups)
    evaluator = Evaluator(scorers, protocol, groups, training_source, evaluation_spec)
    check_checkpoint_metric(cfg.checkpoint_metric, evaluator)
    return evaluator
