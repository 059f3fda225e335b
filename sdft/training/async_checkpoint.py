"""How Lightning saves and loads checkpoints here: in the background where training may go on meanwhile."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch.utils._pytree import tree_map

from sdft.runs.checkpoint_file import parse_step, prune_checkpoints, read_checkpoint, write_checkpoint


class AsyncCheckpointIO(TorchCheckpointIO):
    """Those of steps, of which the newest `keep` remain, are written while training goes on, from a copy; others are waited for.

    What went wrong in the background is raised by the next save, or by `wait`.
    """

    def __init__(self, keep: int):
        self.keep, self.writer, self.last = keep, ThreadPoolExecutor(1, "checkpoint"), None

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        path, later = Path(path), parse_step(Path(path))
        self.wait()
        if later:
            checkpoint = tree_map(copy_to_cpu, checkpoint)
        self.last: Future | None = self.writer.submit(write_and_prune, checkpoint, path, self.keep)
        if not later:
            self.wait()

    def wait(self) -> None:
        """Until what was saved is on the disk."""
        last, self.last = self.last, None
        if last:
            last.result()

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        return read_checkpoint(Path(path))

    def teardown(self):
        self.wait()


def copy_to_cpu(value):
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


def write_and_prune(checkpoint: dict, path: Path, keep: int) -> None:
    write_checkpoint(checkpoint, path)
    prune_checkpoints(path.parent, checkpoint["global_step"], keep)
