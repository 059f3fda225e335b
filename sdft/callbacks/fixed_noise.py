"""The loss on the same images, noise and timesteps before and after: what training moved, without the noise of its draws."""

import torch
from lightning import Callback
from torch.utils.data import default_collate

from sdft.callbacks.ema import EMA
from sdft.callbacks.meters import Meters
from sdft.data.stream import Samples
from sdft.sampling import evaluating

IMAGES = 4
SHARES = (0.125, 0.375, 0.625, 0.875)  # the middle of each quarter of the timesteps


class FixedNoise(Callback):
    """`first` and `last` are mean losses over `IMAGES` training images at each of `SHARES`."""

    def __init__(self, samples: Samples, meters: Meters, ema: EMA):
        self.samples, self.meters, self.ema = samples, meters, ema
        self.first = self.last = float("nan")

    def on_train_start(self, trainer, module):
        self.first = self.measure(trainer, module)

    def on_train_end(self, trainer, module):
        self.last = self.measure(trainer, module)

    @torch.no_grad()
    def measure(self, trainer, module) -> float:
        losses = []
        with self.meters.paused(), self.ema.applied(module), evaluating(module.model):
            for index in range(min(IMAGES, len(self.samples))):
                batch = default_collate([self.samples.fixed(index, share) for share in SHARES])
                batch = {key: value.to(module.device) for key, value in batch.items()}
                with trainer.precision_plugin.forward_context():
                    losses.append(module.losses(batch).mean())
        loss = torch.stack(losses).mean().item()
        for logger in trainer.loggers:
            logger.log_metrics({"fixed_noise/loss": loss}, trainer.global_step)
        return loss
