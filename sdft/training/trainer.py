"""Lightning's trainer with loops that also finish a run killed after its last step, and without its signal handling."""

import logging
import warnings

from lightning import Trainer
from lightning.pytorch.loops import _FitLoop, _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector


def build_lightning_trainer(**kwargs) -> Trainer:
    """Lightning's trainer without epochs and console output, with the loops below."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    disabled = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "use_distributed_sampler"), False)
    trainer = Trainer(max_epochs=-1, **disabled, **kwargs)
    trainer.fit_loop, trainer._signal_connector = FitLoop.from_trainer(trainer), NoSignalConnector(trainer)
    return trainer


class FitLoop(_FitLoop):
    skip = False  # `on_train_end` also runs when no step is left

    @classmethod
    def from_trainer(cls, trainer) -> "FitLoop":
        """A replacement for the trainer's fit loop, with the same limits."""
        original, loop = trainer.fit_loop, cls(trainer, max_epochs=trainer.fit_loop.max_epochs)
        loop.epoch_loop = TrainingEpochLoop(trainer, original.epoch_loop.min_steps, original.epoch_loop.max_steps)
        return loop


class TrainingEpochLoop(_TrainingEpochLoop):
    def _broadcast_sigterm_tensor(self) -> None:
        """Skip Lightning's device synchronization at every step; `callbacks.signals` synchronizes signals on the CPU."""


class NoSignalConnector(_SignalConnector):
    """No signal handlers: Lightning's end the run without a checkpoint and start a collective call inside others."""

    def register_signal_handlers(self) -> None:
        pass
