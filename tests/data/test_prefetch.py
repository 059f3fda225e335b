"""Batches that are loaded in a thread during the backward pass are those that would be loaded without it."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sdft.data.prefetch import BatchPrefetcher
from sdft.training.trainer import PrefetchBatches


class Numbers(Dataset):
    """Numbers, the threads that loaded them, and an image that cannot be loaded."""

    def __init__(self, damaged: int | None = None):
        self.damaged, self.threads, self.is_loading = damaged, [], False

    def __len__(self):
        return 7

    def __getitem__(self, number: int) -> torch.Tensor:
        if number == self.damaged:
            raise ValueError(f"{number}.png: damaged")
        self.is_loading = True
        self.threads.append(threading.current_thread())
        time.sleep(0.01)
        self.is_loading = False
        return torch.tensor(number)


def iterate(dataset: Numbers, with_backward=lambda number: True):
    """The batches of a training loop, some of whose steps compute gradients."""
    prefetcher, callback = BatchPrefetcher(DataLoader(dataset, batch_size=2)), PrefetchBatches()
    trainer = SimpleNamespace(datamodule=SimpleNamespace(prefetcher=prefetcher))
    try:
        for number, batch in enumerate(prefetcher):
            yield batch.tolist()
            if with_backward(number):
                callback.on_before_backward(trainer, None, None)
                callback.on_after_backward(trainer, None)
                assert not dataset.is_loading
    finally:
        prefetcher.close()


@pytest.mark.parametrize("with_backward", [lambda number: True, lambda number: number % 2, lambda number: False])
def test_the_order_is_that_of_the_loader(with_backward):
    assert list(iterate(Numbers(), with_backward)) == [[0, 1], [2, 3], [4, 5], [6]]


def test_batches_are_loaded_in_one_thread_that_ends():
    dataset, main = Numbers(), threading.current_thread()
    list(iterate(dataset))
    assert dataset.threads[:2] == [main, main]
    (thread,) = set(dataset.threads[2:])
    assert thread is not main and not thread.is_alive()


def test_an_error_is_raised_where_the_batch_is_requested():
    batches = iterate(Numbers(damaged=3))
    assert next(batches) == [0, 1]
    with pytest.raises(ValueError, match="3.png"):
        next(batches)


def test_the_number_of_batches_is_that_of_the_loader():
    assert len(BatchPrefetcher(DataLoader(Numbers(), batch_size=2))) == 4
