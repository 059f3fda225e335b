"""End of a run: evaluate, and print where everything was written."""

import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig

import sdft.distributed as processes
from sdft.lora.formats import DORA_WARNING
from sdft.runs.metadata import RunRecord
from sdft.runs.reproduce import compare_bitwise
from sdft.runs.terminal import print_text
from sdft.training.next_commands import list_next_commands
from sdft.training.results import get_weights_size_mb


def finish_run(record: RunRecord, cfg: DictConfig, method, scorers, has_validation: bool, loggers: list) -> None:
    """Evaluate the result, and print the validation loss and the output files."""
    from sdft.evaluation.plots.loss_curve import plot_loss_curves

    folder, (first, last) = record.folder, record.metadata["validation_loss"]
    images = "held-out" if has_validation else "training"
    is_main_process = processes.rank() == 0
    if is_main_process:
        print_text(f"loss       {first:.4f} → {last:.4f} at fixed noise on {images} images ({last / first - 1:+.1%})")
        plot_loss_curves(folder, has_validation)
        if stopped_at := record.metadata.get("stopped_at"):
            reason = f"{cfg.patience} evaluations without a better {cfg.checkpoint_metric}"
            print_text(f"stopped    at step {stopped_at}: {reason}")
    if cfg.metrics:
        evaluate_result(folder, cfg, method, scorers, loggers)
    if not is_main_process:
        return
    result = folder / method.output_kind
    print_text(f"images     {folder / 'samples.png'}   {folder / 'loss.png'}")
    print_text(f"{method.output_kind:<10} {result}/ ({get_weights_size_mb(result):.1f} MB)")
    if getattr(method, "use_dora", False):
        print_text(f"warning    {DORA_WARNING}")
    if best := record.metadata.get("best"):
        print_text(f"best       {folder / 'best'}/ from step {best['step']}: {best['metric']} {best['value']:.3f}")
    print_text(f"next       {'   ·   '.join(list_next_commands(folder, record.metadata['choices']))}")


def evaluate_result(folder: Path, cfg: DictConfig, method, scorers, loggers: list) -> None:
    """Score the base, the best checkpoint and the result, and log the report on rank 0; collective."""
    from sdft.evaluation.evaluate import evaluate
    from sdft.evaluation.variants import build_run_variants
    from sdft.training.evaluation_logging import log_evaluation

    variants = build_run_variants(folder, method, [1.0], None, cfg.seed)
    report = evaluate(folder / "evaluation", cfg, variants, scorers)
    for logger in loggers if report else ():
        log_evaluation(logger, report, folder)


def report_reproduction(record: RunRecord, original: str) -> bool:
    """Print and record whether the run is bit-identical to the `original` one."""
    identical, differences = compare_bitwise(Path(original).expanduser(), record.folder)
    print_text(f"reproduce  {f'bit-identical to {original}' if identical else f'differs from {original}:'}", flush=True)
    for line in differences:
        print_text(f"           {line}", flush=True)
    record.end("finished", reproduces={"run": original, "identical": identical})
    return identical


def free_training_memory(module, trainer) -> None:
    """Free gradients and optimizer states, and on a GPU also the weights, for the evaluation.

    Lightning has moved the module to the CPU at the end of the training; its memory stays reserved until the cache is emptied.
    """
    for optimizer in trainer.optimizers:
        optimizer.zero_grad()
        getattr(optimizer, "clear_states", optimizer.state.clear)()
    if trainer.strategy.root_device.type != "cpu":
        module.to("cpu")
        module.masters.to(torch.device("cpu"))
        torch.accelerator.empty_cache()


@contextmanager
def close_loggers_on_exit():
    """Close the loggers on exit: with status 1 after an exception, else 0."""
    try:
        yield
    except BaseException:
        close_loggers(1)
        raise
    close_loggers()


def close_loggers(status: int = 0) -> None:
    """Finish the W&B run, if any, with the exit status of this process."""
    if "wandb" in sys.modules:
        from sdft.training.wandb_logger import finish_wandb_run

        finish_wandb_run(status)
