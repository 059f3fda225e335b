"""How Lightning saves and loads checkpoints here."""

from pathlib import Path

from lightning.fabric.plugins.io import TorchCheckpointIO

from sdft.checkpoints import read, write


class WholeFiles(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint, path, storage_options=None):
        write(checkpoint, Path(path))

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        return read(Path(path))
