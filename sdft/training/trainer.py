"""Lightning's trainer, which also finishes a run killed after its last step."""

import logging
import warnings

from lightning import Callback, Trainer


def build_lightning_trainer(callbacks: list[Callback], **kwargs) -> Trainer:
    """Lightning's trainer without epochs and console output."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    disabled = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "use_distributed_sampler"), False)
    return Trainer(max_epochs=-1, callbacks=[FinishWithoutSteps(), *callbacks], **disabled, **kwargs)


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
