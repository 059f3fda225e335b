"""Measurements of a run that has trained."""

import hashlib
from pathlib import Path

import sdft.distributed as processes
from sdft.runs.hashing import hash_file
from sdft.training.callbacks.evaluation import PeriodicEvaluation
from sdft.training.callbacks.metrics import TrainingMetrics
from sdft.training.callbacks.validation import ValidationLoss


def collect_training_results(trainer, result: Path) -> dict:
    """Measurements of the callbacks, and the size of the trained weights; on rank 0 also their digest."""
    callbacks = {type(callback): callback for callback in trainer.callbacks}
    training_metrics, validation = callbacks[TrainingMetrics], callbacks[ValidationLoss]
    best = callbacks[PeriodicEvaluation].best if PeriodicEvaluation in callbacks else None
    early_stop = {"stopped_at": trainer.global_step} if trainer.global_step < trainer.max_steps else {}
    steps = training_metrics.steps
    return {
        **({"best": best} if best else {}),
        **early_stop,
        "seconds": round(training_metrics.get_elapsed_seconds(), 1),
        "last": training_metrics.last,
        "seconds_per_step": round(training_metrics.seconds / steps, 4) if steps else None,
        "validation_loss": [validation.first, validation.last],
        **({} if processes.rank() else {"result_digest": hash_result(result)}),
        "result_mb": round(get_weights_size_mb(result), 3),
    }


def hash_result(result: Path) -> str:
    """SHA-256 of the weights files and their names, as 16 hexadecimal digits."""
    files = [(f.relative_to(result).as_posix(), hash_file(f)) for f in sorted(result.rglob("*.safetensors"))]
    return hashlib.sha256(repr(files).encode()).hexdigest()[:16]


def get_weights_size_mb(result: Path) -> float:
    return sum(f.stat().st_size for f in result.rglob("*.safetensors")) / 2**20
