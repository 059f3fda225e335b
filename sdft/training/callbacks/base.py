"""What several callbacks of a run share; they fetch it in `setup`, so that their constructors take settings only."""

from pathlib import Path

from lightning import Callback

from sdft.training.callbacks.ema import EMA
from sdft.training.callbacks.metrics import TrainingMetrics


class RunCallback(Callback):
    """A callback with the run's `folder`, `training_metrics` and `ema`."""

    def setup(self, trainer, module, stage):
        callbacks = {type(callback): callback for callback in trainer.callbacks}
        self.folder = Path(trainer.default_root_dir)
        self.training_metrics, self.ema = callbacks[TrainingMetrics], callbacks.get(EMA)
