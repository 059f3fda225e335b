"""Callbacks that watch training: metrics, progress, EMA, validation loss, and checks that stop a run that cannot succeed."""

from lightning import Callback

from sdft.training.callbacks.ema import EMA
from sdft.training.callbacks.gradient_check import ZeroGradientCheck
from sdft.training.callbacks.loss_spike import LossSpikeWarning
from sdft.training.callbacks.metrics import TrainingMetrics
from sdft.training.callbacks.nan_check import NanCheck
from sdft.training.callbacks.progress_bar import ProgressBar
from sdft.training.callbacks.validation import ValidationLoss


def build_monitoring_callbacks(training, validation_dataset) -> dict[str, Callback]:
    """Callbacks by their names in `run_callbacks.CALLBACK_ORDER`; `training` has the settings."""
    return {
        "nan_check": NanCheck(training.on_nan, training.log_every),
        "training_metrics": TrainingMetrics(training.log_every),
        "loss_spike": LossSpikeWarning(),
        "progress_bar": ProgressBar(),
        "gradient_check": ZeroGradientCheck(),
        "ema": EMA(training.ema),
        "validation": ValidationLoss(training.validate_every, validation_dataset),
    }
