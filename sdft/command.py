"""The command line: Hydra, with every refusal in one line, and no folder left behind by a run that never started."""

import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle OpenMP threads that spin slow a busy machine twentyfold

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sdft.processes import met, place, prepare
from sdft.resume import words

PACKAGE = Path(__file__).parent
ABOUT = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version"}  # ask, and run nothing
MULTIRUN = ("-m", "--multirun")
LET_SPEAK = (
    3  # seconds in which the first of several processes tells what all of them stumbled over; they are then ended
)
STARTED = "run.json"  # a run folder without it never started


def command(config: str) -> Callable:
    """Make `task(cfg)` a Hydra program over `conf/CONFIG.yaml`. HYDRA_FULL_ERROR=1 shows tracebacks instead of lines."""

    asked = os.environ.get("HYDRA_FULL_ERROR") == "1"

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        def run(cfg: DictConfig) -> None:
            with told_in_one_line(asked), unstarted_runs_removed():
                task(cfg)

        program = hydra.main(version_base="1.3", config_path=str(PACKAGE.parent / "conf"), config_name=config)(run)

        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its own errors on
            with told_in_one_line(asked):
                if config == "train":
                    sys.argv[1:] = words(sys.argv[1:])
                prepare()
                several = [word for word in sys.argv[1:] if word in MULTIRUN or word.startswith("sweeps=")]
                if several and not ABOUT & set(sys.argv):
                    if config != "train":
                        raise ValueError(f"{' '.join(several)}: only train.py runs sweeps; evaluate.py takes run=[A,B]")
                    from sdft.sweep import sweep

                    named = [word.removeprefix("sweeps=") for word in several if word not in MULTIRUN]
                    if len(named) > 1:
                        raise ValueError(f"{' '.join(several)}: give one of them")
                    sys.exit(sweep(named[-1] if named else None, [w for w in sys.argv[1:] if w not in several]))
                program()

        return main

    return decorate


@contextmanager
def told_in_one_line(asked: bool):
    """Exit with one line for what a user can mend; everything else, or all when `asked`, keeps its traceback."""
    try:
        yield
    except Exception as error:
        if place().number:
            time.sleep(LET_SPEAK)
        if asked or not explained(error):
            if met():  # whoever fails must not wait for the others on its way out
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            raise
        print(f"error: {f'process {place().number}: ' if place().number else ''}{line(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def unstarted_runs_removed():
    """When a run fails before it starts, remove what Hydra made for it: `.hydra/`, and folders that are then empty."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    try:
        yield
    except BaseException:
        if hydra_config.output_subdir and not (folder / STARTED).exists():
            shutil.rmtree(folder / hydra_config.output_subdir, ignore_errors=True)
            for empty in (folder, *list(folder.parents)[:2]):
                if empty == Path.cwd() or not empty.is_dir() or any(empty.iterdir()):
                    break
                empty.rmdir()
        raise


def cause(error: BaseException) -> BaseException:
    """What happened, below what Hydra wrapped around it."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def explained(error: BaseException) -> bool:
    """Whether the message is meant for the user: Hydra's and OmegaConf's, the system's, and the `ValueError`s of this package."""
    error = cause(error)
    if isinstance(error, (HydraException, OmegaConfBaseException, OSError)):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError) and bool(frames) and Path(frames[-1].filename).is_relative_to(PACKAGE)


def line(error: BaseException) -> str:
    """One line: what was given, and what would be accepted."""
    error = cause(error)
    told = [part.strip() for part in str(error).split("Config search path")[0].splitlines() if part.strip()]
    if isinstance(error, HydraException):
        told = [part for part in told if not part.startswith(("full_key:", "object_type=", "See https"))]
        if error.__cause__ is not None and str(error.__cause__) not in str(error):
            told.append(str(error.__cause__).splitlines()[0])
    return " ".join(told) or type(error).__name__
