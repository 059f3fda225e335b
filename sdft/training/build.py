"""From a config to the objects of a run."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from sdft.data.dataset import ImageDataset
from sdft.runs.metadata import get_command_line
from sdft.training.optimizers import check_optimizer

COMPONENTS = (
    "method",
    "objective",
    "smoothness",
    "schedule",
    "precision",
    "strategy",
    "sampling",
    "dataset",
    "training",
)
LIGHT_COMPONENTS = (*COMPONENTS, "metrics", "prior", "protocol")


def build_components(cfg: DictConfig) -> dict:
    """What needs neither pictures nor weights, so that its refusals come first."""
    parts = {key: instantiate(cfg[key]) for key in LIGHT_COMPONENTS}
    check_optimizer(cfg.optimizer)
    check_compatibility(cfg, parts)
    return parts


def check_compatibility(cfg: DictConfig, parts: dict) -> None:
    """`ValueError` for parts that do not go with each other."""
    method, name = parts["method"], HydraConfig.get().runtime.choices.get("method")
    if method.is_distillation and not parts["objective"].is_distillation:
        raise ValueError(f"method={name}: learns by objective=consistency alone; leave the objective out")
    if parts["objective"].is_distillation and not method.is_distillation:
        raise ValueError(f"objective=consistency: a method={name} has no teacher; choose method=lcm_lora")
    if method.is_distillation and parts["prior"]:
        raise ValueError(f"prior={HydraConfig.get().runtime.choices.prior}: the base itself teaches; choose prior=none")
    if cfg.smooth_diffusion_weight and parts["strategy"].name == "fsdp":
        raise ValueError(
            f"smooth_diffusion_weight={cfg.smooth_diffusion_weight}: strategy=fsdp has no second derivatives; choose strategy=ddp"
        )


def build_training_dataset(
    parts: dict, model, taught: ImageDataset, classes: ImageDataset | None, samples_per_step: int
):
    """The stream that is learned from: single pictures, or each beside one of its class."""
    from sdft.data.prior_preservation import PriorPreservationDataset

    samples = parts["dataset"].samples(taught, model, samples_per_step=samples_per_step)
    if classes is None:
        return samples
    return PriorPreservationDataset(samples, parts["dataset"].samples(classes, model, "class "), parts["prior"].weight)


def build_module(cfg: DictConfig, parts: dict, model):
    from sdft.training.callbacks.ema import has_averaged_weights
    from sdft.training.module import DiffusionModule

    loop = parts["training"]
    scale = loop.samples_per_step(parts["strategy"].world_size()) if loop.scale_lr else 1
    optimizer = instantiate(cfg.optimizer, _convert_="all")  # plain lists, for checkpoints hold them
    if loop.ema and has_averaged_weights(optimizer.func):
        raise ValueError(f"ema={loop.ema}: {optimizer.func.__name__} averages the weights itself; give ema=0")
    if optimizer.func.__name__ == "Prodigy" and (
        loop.lr < 0.1 or loop.text_encoder_lr != loop.lr or cfg.method.get("loraplus_lr_ratio", 1) != 1
    ):
        raise ValueError(
            f"lr={loop.lr} text_encoder_lr={loop.text_encoder_lr}: Prodigy finds the rate of all; give lr=1.0 text_encoder_lr=1.0"
        )
    return DiffusionModule(
        model,
        parts["method"],
        parts["objective"],
        disable_fused(optimizer) if parts["precision"].needs_grad_scaler else optimizer,
        parts["schedule"],
        lr={"unet": loop.lr * scale, "text_encoder": loop.text_encoder_lr * scale},
        max_grad_norm=loop.max_grad_norm,
        compute_dtype=parts["precision"].dtype,
        checkpointing=loop.gradient_checkpointing,
        seed=cfg.seed,
        smoothness=parts["smoothness"] if parts["smoothness"].weight else None,
    )


def disable_fused(optimizer: partial) -> partial:
    """Fused optimizers unscale fp16 gradients themselves, after they were clipped: too late."""
    return partial(optimizer, fused=False) if "fused" in optimizer.keywords else optimizer


def build_trainer(
    cfg: DictConfig,
    parts: dict,
    samples,
    held_out,
    folder: Path,
    prompts: list[str],
    steps: int,
    exam,
    before,
    checkpoint: Path | None,
):
    """Lightning's trainer with this project's callbacks; it keeps no console of its own.

    `held_out` are samples for validation, None to validate on some of those that are learned from; `exam` is taken on the way;
    `before` is the run as it was when it goes on, `checkpoint` what it goes on from.
    """
    from sdft.runs.metrics_csv import MetricsCsv
    from sdft.training.async_checkpoint import AsyncCheckpointIO
    from sdft.training.trainer import build_lightning_trainer

    loop = parts["training"]
    dashboard = instantiate(cfg.logger, **(before.wandb() if before and "wandb" in str(cfg.logger) else {}))
    place, metrics = parts["strategy"].trainer(), MetricsCsv(folder)
    if not checkpoint:
        metrics.truncate(0)
    return build_lightning_trainer(
        **place | {"plugins": [*place["plugins"], AsyncCheckpointIO(loop.checkpoints_total_limit)]},
        precision=parts["precision"].lightning_precision,
        max_steps=steps,
        accumulate_grad_batches=loop.gradient_accumulation_steps,
        logger=[metrics, *([dashboard] if dashboard else [])],
        callbacks=build_callbacks(cfg, parts, samples, held_out, folder, prompts, exam, metrics, checkpoint),
        log_every_n_steps=loop.log_every,
        enable_checkpointing=True,
        default_root_dir=folder,
    )


def build_callbacks(
    cfg: DictConfig, parts: dict, samples, held_out, folder, prompts: list[str], exam, metrics, checkpoint
) -> list:
    """In the order in which they act; Lightning puts checkpoints last."""
    from sdft.training.callbacks.checkpoint import PeriodicCheckpoint
    from sdft.training.callbacks.ema import EMA
    from sdft.training.callbacks.export import ResultExport
    from sdft.training.callbacks.gradient_check import ZeroGradientCheck
    from sdft.training.callbacks.loss_spike import LossSpikeWarning
    from sdft.training.callbacks.metrics import TrainingMetrics
    from sdft.training.callbacks.nan_check import NanCheck
    from sdft.training.callbacks.oom_checkpoint import OomCheckpoint
    from sdft.training.callbacks.progress_bar import ProgressBar
    from sdft.training.callbacks.sample_images import SampleImageWriter as SampleSheets
    from sdft.training.callbacks.signals import SignalHandler
    from sdft.training.callbacks.validation import ValidationLoss

    loop = parts["training"]
    ema, training_metrics = EMA(loop.ema), TrainingMetrics(loop.log_every)
    sheets = SampleSheets(folder, parts["sampling"], prompts, cfg.resolution, loop.sample_every, ema, training_metrics)
    found = [
        NanCheck(samples, loop.on_nan, loop.log_every, folder),
        training_metrics,
        LossSpikeWarning(training_metrics),
        ProgressBar(training_metrics),
        ZeroGradientCheck(),
        *([ema] if loop.ema else []),
        ValidationLoss(samples, held_out, loop.validate_every, training_metrics, ema),
        sheets,
        ResultExport(sheets, cfg.name, get_command_line()),
    ]
    if exam:
        found.insert(-1, build_evaluation_callback(cfg, parts, folder, exam, ema, training_metrics, checkpoint))
    saves = PeriodicCheckpoint(
        folder / "checkpoints", loop.get_save_interval_steps(), loop.get_save_interval_seconds(), metrics
    )
    return [*found, OomCheckpoint(folder), SignalHandler(folder), saves]


def build_evaluation_callback(
    cfg: DictConfig, parts: dict, folder: Path, exam, ema, training_metrics, checkpoint: Path | None
):
    """`exam` every so often, with other seeds than at the end."""
    from sdft.training.callbacks.evaluation import EVALUATION_SEED_OFFSET, PeriodicEvaluation

    loop = parts["training"]
    asked = replace(parts["sampling"], images=exam.images, seed=parts["sampling"].seed + EVALUATION_SEED_OFFSET)
    chosen = {"every": loop.evaluate_every, "monitor": loop.checkpoint_metric, "patience": loop.patience}
    before = checkpoint.parent.parent if checkpoint else None
    about = {"ema": ema, "training_metrics": training_metrics, "name": cfg.name, "before": before}
    return PeriodicEvaluation(folder, exam, asked, cfg.resolution, **chosen, **about)
