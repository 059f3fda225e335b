"""Lightning data module over the training samples."""

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from sdft.data.batch_sampler import TrainingBatchSampler
from sdft.data.prefetch import BatchPrefetcher
from sdft.data.training_dataset import TrainingDataset


class TrainingDataModule(LightningDataModule):
    """One data loader for the whole run, so that workers start only once."""

    def __init__(self, samples: TrainingDataset, batch_size: int, workers: int = 0):
        super().__init__()
        self.samples, self.batch_size, self.workers = samples, batch_size, workers
        self.prefetcher: BatchPrefetcher | None = None  # without workers

    def train_dataloader(self) -> DataLoader | BatchPrefetcher:
        """Load the batches from the trainer's current step to the last step of the run."""
        trainer = self.trainer
        batch_sampler = TrainingBatchSampler(
            self.samples.plan,
            trainer.global_step,
            trainer.max_steps,
            self.batch_size,
            trainer.accumulate_grad_batches,
            trainer.global_rank,
            trainer.world_size,
        )
        loader = DataLoader(
            self.samples,
            batch_sampler=batch_sampler,
            collate_fn=self.samples.collate,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )
        if self.workers:
            return loader
        self.prefetcher = BatchPrefetcher(loader)
        return self.prefetcher

    def teardown(self, stage: str) -> None:
        if self.prefetcher is not None:
            self.prefetcher.close()

    def on_exception(self, exception: BaseException) -> None:
        self.teardown("fit")
