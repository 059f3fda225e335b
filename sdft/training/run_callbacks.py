"""All callbacks of a run: those that watch it, and those that write samples, scores, results and checkpoints."""

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from sdft.runs.invocation import Invocation
from sdft.training.callbacks.checkpoint import PeriodicCheckpoint
from sdft.training.callbacks.ema import EMA
from sdft.training.callbacks.evaluation import EVALUATION_SEED_OFFSET, PeriodicEvaluation
from sdft.training.callbacks.export import ResultExport
from sdft.training.callbacks.metrics import TrainingMetrics
from sdft.training.callbacks.oom_checkpoint import OomCheckpoint
from sdft.training.callbacks.sample_images import SampleImageWriter
from sdft.training.callbacks.stop_request import StopOnRequest, StopRequestListener
from sdft.training.datasets import RunDatasets
from sdft.training.inputs import RunInputs
from sdft.training.monitoring_callbacks import build_monitoring_callbacks


def build_callbacks(
    cfg: DictConfig,
    parts: dict,
    datasets: RunDatasets,
    folder: Path,
    inputs: RunInputs,
    evaluation,
    metrics_csv,
    invocation: Invocation,
) -> list:
    """The callbacks in execution order, the user's own last; Lightning moves checkpoint callbacks to the end."""
    training = parts["training"]
    ema, training_metrics = EMA(training.ema), TrainingMetrics(training.log_every)
    sample_images = SampleImageWriter(
        folder, parts["sampling"], inputs.prompts, cfg.resolution, training.sample_every, ema, training_metrics
    )
    evaluations = []
    if evaluation:
        evaluations = [
            build_evaluation_callback(cfg, parts, folder, evaluation, ema, training_metrics, inputs.checkpoint)
        ]
    stop_request = invocation.stop_request
    interval = (training.get_save_interval_steps(), training.get_save_interval_seconds())
    return [
        StopRequestListener(stop_request),
        OomCheckpoint(folder),
        *build_monitoring_callbacks(parts, datasets, folder, ema, training_metrics),
        sample_images,
        *evaluations,
        ResultExport(sample_images, cfg.name, list(invocation.command)),
        *parts["callbacks"].values(),
        StopOnRequest(stop_request, folder),
        PeriodicCheckpoint(folder / "checkpoints", *interval, metrics_csv),
    ]


def build_evaluation_callback(
    cfg: DictConfig, parts: dict, folder: Path, evaluation, ema, training_metrics, checkpoint: Path | None
) -> PeriodicEvaluation:
    """The callback that runs `evaluation` during training, with seeds other than the final evaluation's."""
    training = parts["training"]
    seed = parts["sampling"].seed + EVALUATION_SEED_OFFSET
    return PeriodicEvaluation(
        folder,
        evaluation,
        replace(parts["sampling"], images=evaluation.images, seed=seed),
        cfg.resolution,
        every=training.evaluate_every,
        monitor=training.checkpoint_metric,
        patience=training.patience,
        ema=ema,
        training_metrics=training_metrics,
        name=cfg.name,
        previous_run=checkpoint.parent.parent if checkpoint else None,
    )
