"""Callbacks that watch training: metrics, progress, EMA, validation loss, and checks that stop a run that cannot succeed."""

from pathlib import Path

from sdft.training.callbacks.ema import EMA
from sdft.training.callbacks.gradient_check import ZeroGradientCheck
from sdft.training.callbacks.loss_spike import LossSpikeWarning
from sdft.training.callbacks.metrics import TrainingMetrics
from sdft.training.callbacks.nan_check import NanCheck
from sdft.training.callbacks.progress_bar import ProgressBar
from sdft.training.callbacks.validation import ValidationLoss
from sdft.training.datasets import RunDatasets


def build_monitoring_callbacks(
    parts: dict, datasets: RunDatasets, folder: Path, ema: EMA, training_metrics: TrainingMetrics
) -> list:
    """In execution order: a step is checked before it is measured, and averaged before it is validated."""
    training = parts["training"]
    return [
        NanCheck(datasets.training, training.on_nan, training.log_every, folder),
        training_metrics,
        LossSpikeWarning(training_metrics),
        ProgressBar(training_metrics),
        ZeroGradientCheck(),
        *([ema] if training.ema else []),
        ValidationLoss(datasets.training, datasets.validation, training.validate_every, training_metrics, ema),
    ]
