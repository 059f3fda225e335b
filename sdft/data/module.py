"""The stream of samples as Lightning reads it."""

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from sdft.data.stream import Numbers, Samples


class Pictures(LightningDataModule):
    """A whole run is one stream of batches that cross the epochs, so none is short and workers start once."""

    def __init__(self, samples: Samples, batch_size: int, workers: int = 0):
        super().__init__()
        self.samples, self.batch_size, self.workers = samples, batch_size, workers

    def train_dataloader(self) -> DataLoader:
        """From the first sample that the trainer's optimizer steps have not seen, to the last of the run."""
        trainer = self.trainer
        a_step = self.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        numbers = Numbers(
            trainer.global_step * a_step,
            trainer.max_steps * a_step,
            self.batch_size,
            trainer.global_rank,
            trainer.world_size,
        )
        return DataLoader(
            self.samples, batch_sampler=numbers, num_workers=self.workers, pin_memory=torch.cuda.is_available()
        )
