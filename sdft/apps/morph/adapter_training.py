"""Training of an adapter on the samples of one image, without the files of a run."""

from functools import partial

import torch

from sdft.data.datamodule import TrainingDataModule
from sdft.losses.diffusion import DiffusionLoss
from sdft.models.cpu_threads import limit_threads
from sdft.models.diffusion_model import DiffusionModel
from sdft.training.callbacks.metrics import TrainingMetrics
from sdft.training.callbacks.progress_bar import ProgressBar
from sdft.training.lr_schedule import LRSchedule
from sdft.training.module import DiffusionModule
from sdft.training.precision import Precision
from sdft.training.strategy import Strategy
from sdft.training.trainer import build_lightning_trainer, fit


def build_module(model: DiffusionModel, method, precision: Precision, lr: float, seed: int) -> DiffusionModule:
    """The model with the regular loss, without weighting, and a constant learning rate."""
    optimizer = partial(torch.optim.AdamW, lr=lr, weight_decay=1e-2)
    options = {"lr": dict.fromkeys(model.parts, lr), "compute_dtype": precision.dtype, "seed": seed}
    return DiffusionModule(model, method, DiffusionLoss("none"), optimizer, LRSchedule("constant"), **options)


def fit_module(module: DiffusionModule, samples, steps: int, precision: Precision, strategy: Strategy) -> None:
    """Train with the regular trainer, in batches of one sample."""
    trainer_kwargs = strategy.trainer_kwargs()
    trainer_kwargs["plugins"] += precision.build_plugins()
    trainer = build_lightning_trainer(
        **trainer_kwargs,
        max_steps=steps,
        logger=False,
        callbacks=[TrainingMetrics(max(1, steps // 20)), ProgressBar()],
        enable_checkpointing=False,
    )
    model = module.model
    with limit_threads(model.unet, model.batch_shape(1, samples.sizes[0])):
        fit(trainer, module, TrainingDataModule(samples, 1))
