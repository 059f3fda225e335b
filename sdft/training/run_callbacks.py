"""All callbacks of a run: those that watch it, and those that write samples, scores, results and checkpoints."""

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from sdft.runs.invocation import Invocation
from sdft.training.callbacks.checkpoint import PeriodicCheckpoint
from sdft.training.callbacks.evaluation import EVALUATION_SEED_OFFSET, PeriodicEvaluation
from sdft.training.callbacks.export import ResultExport
from sdft.training.callbacks.oom_checkpoint import OomCheckpoint
from sdft.training.callbacks.sample_images import SampleImageWriter
from sdft.training.callbacks.stop_request import StopOnRequest, StopRequestListener
from sdft.training.datasets import RunDatasets
from sdft.training.inputs import RunInputs
from sdft.training.monitoring_callbacks import build_monitoring_callbacks

CALLBACK_ORDER = (  # Lightning calls the methods of callbacks in this order, and those of `checkpoint` last
    "stop_request_listener",  # from here on a request to stop is noted
    "oom_checkpoint",
    "nan_check",  # a step is checked before it is measured
    "training_metrics",
    "loss_spike",
    "progress_bar",
    "gradient_check",
    "ema",  # averaged before it is validated and sampled
    "validation",
    "sample_images",
    "evaluation",
    "export",
    "user",  # those of the config group `callbacks`
    "stop_on_request",  # after a step is complete
    "checkpoint",
)


def build_callbacks(
    cfg: DictConfig, parts: dict, datasets: RunDatasets, inputs: RunInputs, evaluation, invocation: Invocation
) -> list:
    """The callbacks of a run in `CALLBACK_ORDER`; `evaluation` runs during training, if there is one."""
    training, stop_request = parts["training"], invocation.stop_request
    callbacks = build_monitoring_callbacks(training, datasets.validation) | {
        "stop_request_listener": StopRequestListener(stop_request),
        "oom_checkpoint": OomCheckpoint(),
        "sample_images": SampleImageWriter(parts["sampling"], inputs.prompts, cfg.resolution, training.sample_every),
        "export": ResultExport(cfg.name, list(invocation.command)),
        "stop_on_request": StopOnRequest(stop_request),
        "checkpoint": PeriodicCheckpoint(training.get_save_interval_steps(), training.get_save_interval_seconds()),
    }
    if evaluation:
        callbacks["evaluation"] = build_evaluation_callback(cfg, parts, evaluation, inputs.checkpoint)
    groups = {name: [callback] for name, callback in callbacks.items()} | {"user": [*parts["callbacks"].values()]}
    return [callback for name in CALLBACK_ORDER for callback in groups.get(name, [])]


def build_evaluation_callback(cfg: DictConfig, parts: dict, evaluation, checkpoint: Path | None) -> PeriodicEvaluation:
    """The callback that runs `evaluation` during training, with seeds other than the final evaluation's."""
    training = parts["training"]
    seed = parts["sampling"].seed + EVALUATION_SEED_OFFSET
    return PeriodicEvaluation(
        evaluation,
        replace(parts["sampling"], images=evaluation.images, seed=seed),
        cfg.resolution,
        every=training.evaluate_every,
        monitor=training.checkpoint_metric,
        patience=training.patience,
        name=cfg.name,
        previous_run=checkpoint.parent.parent if checkpoint else None,
    )
