"""Build a run from its config, say what will happen, train, and tell what improved."""

import re
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from sdft.preflight import announce, inspect
from sdft.prompts import read_prompts
from sdft.record import Record, command


def train(cfg: DictConfig):
    """One run in the folder that Hydra made; returns the trained module.

    What a user can get wrong is refused before anything is written there.
    """
    check_name(cfg.name)
    folder, choices = Path(HydraConfig.get().runtime.output_dir), HydraConfig.get().runtime.choices
    light = ("method", "objective", "schedule", "precision", "strategy", "sampling", "stream", "loop", "metrics")
    parts = {key: instantiate(cfg[key]) for key in light}  # cheap, so that their refusals come first
    parts["precision"].check(parts["strategy"].trainer()["accelerator"])
    checkpoint, source = parts["loop"].checkpoint(), instantiate(cfg.data)
    prompts = read_prompts(cfg.prompts) or source.prompts()
    if hasattr(source, "verify"):
        source.verify()
    parts["precision"].apply()
    torch.manual_seed(cfg.seed)
    model = instantiate(cfg.model)
    samples = parts["stream"].samples(source, model)
    judge = parts["metrics"].judge() if cfg.metrics else None

    from sdft.data.module import Pictures

    loop = parts["loop"]
    module = build_module(cfg, parts, model)
    trainer = build_trainer(cfg, parts, samples, folder, prompts)
    check_unfinished(checkpoint, trainer.max_steps)
    plan = inspect(module, samples, loop, parts["schedule"], trainer)
    record = Record(folder)
    if trainer.is_global_zero:
        announce(plan, title(choices, cfg), source.describe(), folder)
        record.start(plan, cfg)
    began = time.perf_counter()
    try:
        for logger in trainer.loggers:
            logger.log_hyperparams(flat(cfg, choices) | {"learns": sum(plan["learns"].values())})
        trainer.fit(module, Pictures(samples, loop.batch_size, loop.workers), ckpt_path=checkpoint, weights_only=True)
    except BaseException:
        if trainer.is_global_zero:
            record.end("failed")
        raise
    finally:
        close_dashboards()
    if trainer.is_global_zero:
        record.end("finished", seconds=round(time.perf_counter() - began, 1), **outcome(trainer))
        closing(folder, cfg, module.method, judge, record.facts["fixed_noise_loss"])
    return module


def build_module(cfg: DictConfig, parts: dict, model):
    from sdft.module import FineTuning

    loop = parts["loop"]
    return FineTuning(
        model,
        parts["method"],
        parts["objective"],
        unfused(instantiate(cfg.optimizer)) if parts["precision"].scaled else instantiate(cfg.optimizer),
        parts["schedule"],
        lr={"unet": loop.lr, "text_encoder": loop.text_lr},
        clip=loop.clip,
        compute=parts["precision"].dtype,
        seed=cfg.seed,
    )


def unfused(optimizer: partial) -> partial:
    """Fused optimizers unscale fp16 gradients themselves, after they were clipped: too late."""
    return partial(optimizer, fused=False) if "fused" in optimizer.keywords else optimizer


def build_trainer(cfg: DictConfig, parts: dict, images, folder: Path, prompts: list[str]):
    """Lightning's trainer with this project's callbacks; it keeps no console of its own."""
    import logging

    from lightning import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    from sdft.callbacks.ema import EMA
    from sdft.callbacks.export import Export
    from sdft.callbacks.fixed_noise import FixedNoise
    from sdft.callbacks.gradients import FirstGradients
    from sdft.callbacks.meters import Meters
    from sdft.callbacks.progress import ProgressBar
    from sdft.callbacks.samples import Samples

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    loop, strategy = parts["loop"], parts["strategy"].trainer()
    ema, meters = EMA(loop.ema), Meters(loop.log_every)
    samples = Samples(folder, parts["sampling"], prompts, cfg.resolution, loop.sample_every, ema, meters)
    callbacks = [
        meters,
        ProgressBar(meters),
        FirstGradients(),
        *([ema] if loop.ema else []),
        FixedNoise(images, meters, ema),
        samples,
        Export(samples, cfg.name, command()),
    ]
    if loop.save_every:
        every = {"every_n_train_steps": loop.save_every, "monitor": "step", "mode": "max", "save_top_k": loop.keep}
        names = {"filename": "step-{step:06d}", "auto_insert_metric_name": False}
        callbacks.append(ModelCheckpoint(folder / "checkpoints", **every, **names))
    dashboard = instantiate(cfg.logger)
    return Trainer(
        **strategy,
        precision=parts["precision"].trainer,
        max_steps=loop.total(len(images), processes(strategy)),
        max_epochs=-1,
        accumulate_grad_batches=loop.accumulate,
        logger=[
            CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1),
            *([dashboard] if dashboard else []),
        ],
        callbacks=callbacks,
        log_every_n_steps=loop.log_every,
        enable_checkpointing=bool(loop.save_every),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )


def processes(strategy: dict) -> int:
    devices = strategy["devices"]
    return (torch.cuda.device_count() if devices == "auto" else devices) * strategy["num_nodes"]


def check_name(name: str) -> None:
    """It names folders and files."""
    if not re.fullmatch(r"[\w+-][\w .+-]*", name):
        raise ValueError(f"name={name}: choose letters, digits, spaces and . _ + - for it")


def check_unfinished(checkpoint: Path | None, steps: int) -> None:
    """Going on from a finished run would train nothing and look like success."""
    if checkpoint is None:
        return
    done = torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]
    if done >= steps:
        raise ValueError(f"resume={checkpoint}: already at step {done} of {steps}; give more steps")


def title(choices, cfg: DictConfig) -> str:
    rank = f" rank {cfg.rank} α {cfg.alpha:g}" if "rank" in cfg else ""
    return f"{choices.method}{rank} · {choices.model}"


def flat(cfg: DictConfig, choices) -> dict:
    """Top-level words as columns, and the chosen names of the groups."""
    words = {key: value for key, value in cfg.items() if not hasattr(value, "items")}
    return words | {
        key: choices[key] for key in ("method", "model", "data", "optimizer", "schedule", "precision", "strategy")
    }


def outcome(trainer) -> dict:
    """What the callbacks measured."""
    from sdft.callbacks.fixed_noise import FixedNoise
    from sdft.callbacks.meters import Meters

    found = {type(callback): callback for callback in trainer.callbacks}
    return {"last": found[Meters].last, "fixed_noise_loss": [found[FixedNoise].first, found[FixedNoise].last]}


def close_dashboards() -> None:
    """Each run of a sweep in this process is a W&B run of its own."""
    import sys

    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].finish()


def closing(folder: Path, cfg: DictConfig, method, judge, losses: list[float]) -> None:
    """What improved, and where everything lies."""
    first, last = losses
    print(f"loss     {first:.4f} → {last:.4f} at fixed noise ({last / first - 1:+.1%})")
    if judge:
        from sdft.evaluation import evaluate

        evaluate(folder, cfg, judge=judge)
    result = folder / method.result
    size = sum(f.stat().st_size for f in result.rglob("*") if f.is_file()) / 2**20
    print(f"look     {folder / 'samples.png'}")
    print(f"{method.result:<8} {result}/ ({size:.1f} MB)")
    score = "python evaluate.py" if judge else "python evaluate.py metrics=clip"
    print(f"next     {score}   ·   python train.py model=sd15 data=folder data.path=PHOTOS")
