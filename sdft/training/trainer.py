"""Lightning's loops: they also end a run that was killed after its last step, and leave signals to `callbacks.stops`."""

import logging
import warnings

from lightning import Trainer
from lightning.pytorch.loops import _FitLoop, _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector


def build_lightning_trainer(**words) -> Trainer:
    """Lightning's trainer over one stream of batches, with these loops and no console of its own."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    silent = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "use_distributed_sampler"), False)
    trainer = Trainer(max_epochs=-1, **silent, **words)
    trainer.fit_loop, trainer._signal_connector = FitLoop.of(trainer), NoSignalConnector(trainer)
    return trainer


class FitLoop(_FitLoop):
    skip = False  # with no step left, what comes after the last one still has to be done

    @classmethod
    def of(cls, trainer) -> "FitLoop":
        """In place of the loop that `trainer` has made."""
        made, loop = trainer.fit_loop, cls(trainer, max_epochs=trainer.fit_loop.max_epochs)
        loop.epoch_loop = TrainingEpochLoop(trainer, made.epoch_loop.min_steps, made.epoch_loop.max_steps)
        return loop


class TrainingEpochLoop(_TrainingEpochLoop):
    def _broadcast_sigterm_tensor(self) -> None:
        """Not at every step: what waits for the device; `callbacks.stops` asks all processes where nothing waits."""


class NoSignalConnector(_SignalConnector):
    """Lightning's own handler ends a run without saving it, and of several processes talks to the others while they talk."""

    def register_signal_handlers(self) -> None:
        pass
