"""The stream of samples as Lightning reads it."""

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from sdft.data.batch_sampler import TrainingBatchSampler
from sdft.data.training_samples import TrainingDataset


class TrainingDataModule(LightningDataModule):
    """A whole run is one stream of batches, so workers start once."""

    def __init__(self, samples: TrainingDataset, batch_size: int, workers: int = 0):
        super().__init__()
        self.samples, self.batch_size, self.workers = samples, batch_size, workers

    def train_dataloader(self) -> DataLoader:
        """From the first step that the trainer has not taken to the last of the run."""
        trainer = self.trainer
        numbers = TrainingBatchSampler(
            self.samples.plan,
            trainer.global_step,
            trainer.max_steps,
            self.batch_size,
            trainer.accumulate_grad_batches,
            trainer.global_rank,
            trainer.world_size,
        )
        return DataLoader(
            self.samples,
            batch_sampler=numbers,
            collate_fn=self.samples.collate,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )
