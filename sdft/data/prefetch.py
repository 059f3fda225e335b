"""Load the next batch in a thread while the networks compute gradients, which leaves the interpreter to it."""

from concurrent.futures import Future, ThreadPoolExecutor, wait

from torch.utils.data import DataLoader


class BatchPrefetcher:
    """The batches of a data loader without workers, in its order, once.

    A batch is loaded between `start` and `wait`, else when it is requested: the dataset and its tokenizer are not used by two
    threads at once. Errors are raised where the batch is requested.
    """

    def __init__(self, loader: DataLoader):
        self.loader, self.iterator = loader, iter(())
        self.future: Future | None = None
        self.executor: ThreadPoolExecutor | None = None

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        self.iterator = iter(self.loader)
        return self

    def __next__(self):
        future, self.future = self.future, None
        batch = future.result() if future else next(self.iterator, None)
        if batch is None:
            raise StopIteration
        return batch

    def start(self) -> None:
        """Begin to load the next batch."""
        if not self.executor:
            self.executor = ThreadPoolExecutor(1, "batches")
        if not self.future:
            self.future = self.executor.submit(next, self.iterator, None)

    def wait(self) -> None:
        """Return when no batch is being loaded."""
        if self.future:
            wait([self.future])

    def close(self) -> None:
        """End the thread."""
        if self.executor:
            self.executor.shutdown()
