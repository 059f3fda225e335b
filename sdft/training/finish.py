"""How a run ends: what was measured, what improved, and where everything lies."""

import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig

import sdft.distributed as processes
from sdft.runs.metadata import RunRecord
from sdft.runs.reproduce import compare_bitwise


def collect_training_results(trainer, result: Path) -> dict:
    """What the callbacks measured, and what the result weighs."""
    from sdft.training.callbacks.evaluation import PeriodicEvaluation
    from sdft.training.callbacks.metrics import TrainingMetrics
    from sdft.training.callbacks.validation import ValidationLoss

    found = {type(callback): callback for callback in trainer.callbacks}
    training_metrics, validation = found[TrainingMetrics], found[ValidationLoss]
    best = found[PeriodicEvaluation].best if PeriodicEvaluation in found else None
    early = {"stopped_at": trainer.global_step} if trainer.global_step < trainer.max_steps else {}
    return {
        **({"best": best} if best else {}),
        **early,
        "seconds": round(training_metrics.get_elapsed_seconds(), 1),
        "last": training_metrics.last,
        "seconds_per_step": round(training_metrics.seconds / training_metrics.steps, 4)
        if training_metrics.steps
        else None,
        "validation_loss": [validation.first, validation.last],
        "result_mb": round(get_weights_size_mb(result), 3),
    }


def finish_run(record: RunRecord, cfg: DictConfig, method, judges, held_out: bool, loggers: list) -> None:
    """What improved, and where everything lies."""
    from sdft.evaluation.plots.loss_curve import plot_loss_curves

    folder, (first, last) = record.folder, record.metadata["validation_loss"]
    images = "held-out" if held_out else "training"
    if first_of_all := processes.rank() == 0:
        print(f"loss     {first:.4f} → {last:.4f} at fixed noise on {images} images ({last / first - 1:+.1%})")
        plot_loss_curves(folder, held_out)
        if stopped := record.metadata.get("stopped_at"):
            waited = f"{cfg.patience} evaluations in a row"
            print(f"stopped  at step {stopped}: {waited} brought no better {cfg.checkpoint_metric}")
    if cfg.metrics:
        from sdft.evaluation.evaluate import evaluate
        from sdft.evaluation.variants import build_run_variants
        from sdft.training.evaluation_logging import log_evaluation

        report = evaluate(folder / "evaluation", cfg, build_run_variants(folder, method, [1.0], None, cfg.seed), judges)
        for logger in loggers if report else ():
            log_evaluation(logger, report, folder / "evaluation" / "images.png")
    if not first_of_all:
        return
    result = folder / method.output_kind
    print(f"look     {folder / 'samples.png'}   {folder / 'loss.png'}")
    print(f"{method.output_kind:<8} {result}/ ({get_weights_size_mb(result):.1f} MB)")
    if best := record.metadata.get("best"):
        print(f"best     {folder / 'best'}/ is of step {best['step']}: {best['metric']} {best['value']:.3f}")
    score = "python evaluate.py" if judges else "python evaluate.py metrics=clip"
    print(f"next     {score}   ·   python train.py model=sd15 data=folder data.path=PHOTOS")


def report_reproduction(record: RunRecord, before: str) -> bool:
    """As the run that this one reproduces."""
    same, lines = compare_bitwise(Path(before).expanduser(), record.folder)
    print(f"repeat   {'bit-identical to' if same else 'not what came of'} {before}", flush=True)
    for line in lines:
        print(f"         {line}", flush=True)
    record.end("finished", reproduces={"run": before, "identical": same})
    return same


def get_weights_size_mb(result: Path) -> float:
    return sum(f.stat().st_size for f in result.rglob("*.safetensors")) / 2**20


def free_training_memory(module, trainer) -> None:
    """What has been trained is on disk: its memory is for the evaluation."""
    for optimizer in trainer.optimizers:
        optimizer.zero_grad()
        optimizer.state.clear()
    if module.device.type == "cuda":
        module.to("cpu")
        torch.cuda.empty_cache()


@contextmanager
def close_loggers_on_exit():
    """Closed at the end, with the exit status that the process will have."""
    try:
        yield
    except BaseException:
        close_loggers(1)
        raise
    close_loggers()


def close_loggers(status: int = 0) -> None:
    """Before the process ends, with the exit status that it will have."""
    if "wandb" in sys.modules:
        from sdft.training.wandb_logger import finish_wandb_run

        finish_wandb_run(status)
