"""Checkpoint input and output for Lightning; step checkpoints are written in the background."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection

from sdft.runs.checkpoint_file import parse_step, prune_checkpoints, read_checkpoint, write_checkpoint


class AsyncCheckpointIO(TorchCheckpointIO):
    """Write step checkpoints from a copy while training continues, keeping the newest `total_limit`; others synchronously.

    Errors of a background write are raised by the next save or by `wait`.
    """

    def __init__(self, total_limit: int):
        self.total_limit, self.writer, self.pending = total_limit, ThreadPoolExecutor(1, "checkpoint"), None

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        path, in_background = Path(path), parse_step(Path(path))
        self.wait()
        if in_background:
            checkpoint = apply_to_collection(checkpoint, torch.Tensor, copy_to_cpu)
        self.pending: Future | None = self.writer.submit(write_and_prune, checkpoint, path, self.total_limit)
        if not in_background:
            self.wait()

    def wait(self) -> None:
        """Wait for the pending write."""
        pending, self.pending = self.pending, None
        if pending:
            pending.result()

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        return read_checkpoint(Path(path))

    def teardown(self):
        self.wait()


def copy_to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def write_and_prune(checkpoint: dict, path: Path, total_limit: int) -> None:
    write_checkpoint(checkpoint, path)
    prune_checkpoints(path.parent, checkpoint["global_step"], total_limit)
