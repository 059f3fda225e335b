"""Lightning's trainer, which also finishes a run killed after its last step."""

import inspect
import logging
import warnings
from contextlib import nullcontext

from lightning import Callback, Trainer
from lightning.pytorch.profilers import PassThroughProfiler

from sdft.models.heap import return_free_memory

OPTION_BY_FLAG = {  # flags of the Trainer that an option of train.py sets
    "accelerator": "accelerator",
    "accumulate_grad_batches": "gradient_accumulation_steps",
    "callbacks": "callbacks",
    "check_val_every_n_epoch": "validate_every",
    "default_root_dir": "hydra.run.dir",
    "devices": "devices",
    "enable_checkpointing": "save_every",
    "enable_model_summary": "log_every",
    "enable_progress_bar": "log_every",
    "gradient_clip_algorithm": "max_grad_norm",
    "gradient_clip_val": "max_grad_norm",
    "limit_train_batches": "steps",
    "limit_val_batches": "validate_every",
    "log_every_n_steps": "log_every",
    "logger": "logger",
    "max_epochs": "epochs",
    "max_steps": "steps",
    "max_time": "steps",
    "min_epochs": "epochs",
    "min_steps": "steps",
    "num_nodes": "num_nodes",
    "overfit_batches": "data",
    "plugins": "precision",
    "precision": "precision",
    "reload_dataloaders_every_n_epochs": "data",
    "strategy": "strategy",
    "sync_batchnorm": "strategy",
    "use_distributed_sampler": "strategy",
    "val_check_interval": "validate_every",
}


def check_trainer_flags(flags: dict) -> None:
    """`ValueError` for flags that the Trainer does not have, and for those that an option sets."""
    known = set(inspect.signature(Trainer).parameters)
    for name, value in flags.items():
        if option := OPTION_BY_FLAG.get(name):
            raise ValueError(f"trainer.{name}={value}: set by sdft; use the option {option}")
        if name not in known:
            free = ", ".join(sorted(known - set(OPTION_BY_FLAG)))
            raise ValueError(f"trainer.{name}={value}: not a flag of Lightning's Trainer; choose from {free}")


def check_callbacks(callbacks: dict) -> None:
    """`ValueError` for objects that are not Lightning callbacks."""
    for name, callback in callbacks.items():
        if not isinstance(callback, Callback):
            raise ValueError(f"callbacks.{name}={callback}: not a Lightning Callback; give a node with its _target_")


def build_lightning_trainer(callbacks: list[Callback], **kwargs) -> Trainer:
    """Lightning's trainer without epochs and console output."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    disabled = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "use_distributed_sampler"), False)
    options = {"profiler": NoProfiler()} | disabled | kwargs
    own = [FinishWithoutSteps(), DataPosition(), PrefetchBatches()]
    return Trainer(max_epochs=-1, callbacks=[*own, *callbacks], **options)


class NoProfiler(PassThroughProfiler):
    """Lightning's default without a generator per hook and callback, of which a step enters a hundred."""

    context = nullcontext()

    def profile(self, action_name: str) -> nullcontext:
        return self.context


class DataPosition(Callback):
    """Resume at the next sample, also with another batch size, gradient accumulation or number of devices.

    Lightning counts micro-batches, which become those that the steps before the checkpoint would have taken.
    """

    def on_save_checkpoint(self, trainer, module, checkpoint):
        checkpoint["step_sizes"] = trainer.datamodule.samples.plan.step_sizes

    def on_load_checkpoint(self, trainer, module, checkpoint):
        batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            completed = batches - counts["processed"] + counts["completed"]  # one less during `on_train_batch_end`
            counts |= {"ready": batches, "started": batches, "processed": batches, "completed": completed}


class PrefetchBatches(Callback):
    """Load the next batch during the backward pass; other callbacks never run meanwhile."""

    def on_before_backward(self, trainer, module, loss):
        if trainer.datamodule.prefetcher is not None:
            trainer.datamodule.prefetcher.start()

    def on_after_backward(self, trainer, module):
        if trainer.datamodule.prefetcher is not None:
            trainer.datamodule.prefetcher.wait()


def fit(trainer: Trainer, module, data, **kwargs) -> None:
    """`trainer.fit`, in which Ctrl-C stays a `KeyboardInterrupt`; Lightning makes it exit status 1."""
    return_free_memory()
    try:
        trainer.fit(module, data, **kwargs)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


class FinishWithoutSteps(Callback):
    """Call `on_train_start` and `on_train_end` also when a resumed run has no step left, for which Lightning skips both.

    One more step is announced from the time when the optimizer exists until `on_train_start`, where this callback comes first.
    """

    def __init__(self):
        self.has_optimizer, self.has_no_steps = False, False

    def on_load_checkpoint(self, trainer, module, checkpoint):
        self.has_no_steps = checkpoint["global_step"] >= trainer.max_steps
        self.announce_step(trainer)

    def on_fit_start(self, trainer, module):  # before `on_load_checkpoint` for sharded weights
        self.has_optimizer = True
        self.announce_step(trainer)

    def announce_step(self, trainer) -> None:
        if self.has_optimizer and self.has_no_steps:
            trainer.fit_loop.epoch_loop.max_steps += 1

    def on_train_start(self, trainer, module):
        if self.has_no_steps:
            trainer.fit_loop.epoch_loop.max_steps -= 1
