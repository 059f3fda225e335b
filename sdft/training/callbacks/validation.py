"""Validation loss at fixed images, noise and timesteps, so that only training changes it."""

import torch

from sdft.data.training_dataset import TrainingDataset
from sdft.models.sampling import eval_mode
from sdft.training.callbacks.base import RunCallback
from sdft.training.callbacks.metrics import NUM_TIMESTEP_QUARTERS

NUM_TRAINING_IMAGES = 4  # without held-out images
MAX_VALIDATION_IMAGES = 32
DEFAULT_VALIDATIONS = 10  # per run, with validate_every=null
TIMESTEP_FRACTIONS = [
    (quarter + 0.5) / NUM_TIMESTEP_QUARTERS for quarter in range(NUM_TIMESTEP_QUARTERS)
]  # of all timesteps: the middle of each quarter


class ValidationLoss(RunCallback):
    """Mean unweighted loss over at most `MAX_VALIDATION_IMAGES` held-out images, else the first `NUM_TRAINING_IMAGES`.

    Measured at the start, every `every` steps (None: `DEFAULT_VALIDATIONS` times per run; 0: never) and at the end.
    """

    def __init__(self, every: int | None, held_out: TrainingDataset | None):
        self.every, self.held_out = every, held_out
        self.first = self.last = float("nan")
        self.last_step: int | None = None

    def setup(self, trainer, module, stage):
        super().setup(trainer, module, stage)
        self.samples = self.held_out or trainer.datamodule.samples
        self.num_images = min(MAX_VALIDATION_IMAGES if self.held_out else NUM_TRAINING_IMAGES, len(self.samples))

    @property
    def state_key(self) -> str:
        return "validation"

    def on_train_start(self, trainer, module):
        if self.every is None:
            self.every = max(1, trainer.max_steps // DEFAULT_VALIDATIONS)
        if trainer.global_step == 0:
            self.first = self.measure_loss(trainer, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.every and trainer.global_step % self.every == 0:
            self.measure_loss(trainer, module)

    def on_train_end(self, trainer, module):
        self.measure_loss(trainer, module)

    @torch.no_grad()
    def measure_loss(self, trainer, module) -> float:
        """Compute and log the loss; once per step."""
        if self.last_step == trainer.global_step:
            return self.last
        self.last_step = trainer.global_step
        losses = []
        with self.training_metrics.pause_clock(), self.ema.apply_averages(module), eval_mode(module.model):
            for index in range(self.num_images):
                batch = self.samples.collate(
                    [self.samples.load_fixed_sample(index, fraction) for fraction in TIMESTEP_FRACTIONS]
                )
                batch = {key: value.to(module.device) for key, value in batch.items()}
                losses.append(module.compute_unweighted_losses(batch))
        quarters = torch.stack(losses).mean(0).tolist()
        self.last = sum(quarters) / NUM_TIMESTEP_QUARTERS
        report = {"loss": self.last} | {f"loss_quarter_{q + 1}": loss for q, loss in enumerate(quarters)}
        for logger in trainer.loggers:
            logger.log_metrics({f"validation/{key}": value for key, value in report.items()}, trainer.global_step)
        return self.last

    def state_dict(self):
        return {"first": self.first, "last": self.last, "last_step": self.last_step}

    def load_state_dict(self, state):
        self.first, self.last, self.last_step = state["first"], state["last"], state["last_step"]
