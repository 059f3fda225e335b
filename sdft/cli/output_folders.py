"""Output folders: checked before anything is computed, and removed if a run fails before it starts."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from sdft.runs.files import check_output_path

OUTPUT_OPTIONS = ("folder", "contact_sheet", "adapter_cache")  # of the programs beside training


def check_output_options(cfg: DictConfig) -> None:
    """`ValueError` for output paths that could not be written."""
    for option in OUTPUT_OPTIONS:
        if isinstance(path := OmegaConf.select(cfg, option), str):
            check_output_path(option, Path(path))


class MissingFolders(Callback):
    """Hydra callback that notes the missing folders of the run's path, the innermost first, before Hydra makes them."""

    paths: ClassVar[list[Path]] = []

    def on_run_start(self, config, **kwargs) -> None:
        folder = Path(str(config.hydra.run.dir)).absolute()
        self.paths[:] = [path for path in (folder, *folder.parents) if not path.exists()]


@contextmanager
def remove_empty_folders() -> Iterator[None]:
    """If the body raises, remove the noted folders that are empty."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty
            for path in MissingFolders.paths:
                path.rmdir()
        raise
    finally:
        MissingFolders.paths.clear()
