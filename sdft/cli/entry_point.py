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
import omegaconf
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sdft.config import CONF, PACKAGE
from sdft.distributed import get_process_info, is_initialized, prepare_launched_process
from sdft.runs.resume import restore_overrides

Hydra.get_mode = lambda *_, **__: None  # it composes everything, to ask for a `hydra.mode` that `check_word` refuses
HYDRA_PACKAGES = (Path(hydra.__file__).parent, Path(omegaconf.__file__).parent)
INFO_FLAGS = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version"}  # ask, and run nothing
MULTIRUN_FLAGS = ("-m", "--multirun")
FIRST_ERROR_DELAY = (
    3  # seconds in which the first of several processes tells what all of them stumbled over; they are then ended
)
RUN_FILE = "run.json"  # a run folder without it never started


def hydra_main(config: str) -> Callable:
    """Make `task(cfg)` a Hydra program over `conf/CONFIG.yaml`. HYDRA_FULL_ERROR=1 shows tracebacks instead of lines."""

    asked = os.environ.get("HYDRA_FULL_ERROR") == "1"

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        def run(cfg: DictConfig) -> None:
            with one_line_errors(asked), remove_unstarted_runs():
                task(cfg)

        program = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(run)

        def main() -> None:
            with propagate_hydra_errors(), one_line_errors(asked):
                parse_overrides(sys.argv[1:])
                if config == "train":
                    sys.argv[1:] = restore_overrides(sys.argv[1:])
                if {"--help", "-h"} & set(sys.argv):
                    from sdft.cli.help import render_help

                    print(render_help(CONF, config, parse_overrides(sys.argv[1:])))
                    return
                prepare_launched_process()
                several = [word for word in sys.argv[1:] if word in MULTIRUN_FLAGS or word.startswith("sweeps=")]
                if several and not INFO_FLAGS & set(sys.argv):
                    if config != "train":
                        raise ValueError(f"{' '.join(several)}: only train.py runs sweeps; evaluate.py takes run=[A,B]")
                    from sdft.sweeps.sweep import run_sweep

                    named = [word.removeprefix("sweeps=") for word in several if word not in MULTIRUN_FLAGS]
                    if len(named) > 1:
                        raise ValueError(f"{' '.join(several)}: give one of them")
                    sys.exit(run_sweep(named[-1] if named else None, [w for w in sys.argv[1:] if w not in several]))
                program()

        return main

    return decorate


def parse_overrides(words: list[str]) -> list[str]:
    """The words that are not flags; `ValueError` for flags that Hydra would answer with a page or a traceback."""
    from hydra._internal.utils import get_args_parser

    def refuse(told: str):
        raise ValueError(f"{told}; a word is WORD=VALUE, and --help lists them")

    parser = get_args_parser()
    parser.error = refuse
    given = parser.parse_args(words)
    if given.experimental_rerun is not None:
        raise ValueError(
            f"--experimental-rerun={given.experimental_rerun}: reads a pickle, which can run programs; repeat the words"
        )
    if given.resolve and not (given.cfg or given.help):
        raise ValueError("--resolve: goes with --cfg job")
    asked = {"--run": given.run, "--multirun": given.multirun, "--cfg": given.cfg, "--info": given.info}
    if len(many := [flag for flag, value in asked.items() if value]) > 1:
        raise ValueError(f"{' '.join(many)}: give one of them")
    for word in given.overrides:
        check_override(word)
    return given.overrides


def check_override(word: str) -> None:
    """WORD=VALUE, and the name of a choice where there are choices; Hydra's own refusals do not say which word they mean."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        override = OverridesParser.create().parse_override(word)
        value = override.value()
    except HydraException as error:
        told = str(error).strip().splitlines()[0]
        raise ValueError(f"{word!r}: not WORD=VALUE; put marks in quotes, as 'WORD=\"a: b\"' ({told})") from None
    key = override.key_or_group
    groups = {place.name: place for place in CONF.iterdir() if place.is_dir()}
    if not key:
        raise ValueError(f"{word!r}: a word is WORD=VALUE, and --help lists them")
    if key == "hydra.mode":
        raise ValueError(f"{word}: Hydra's own sweeps run all jobs in one process; give -m")
    choice = key in groups or key == "hydra" or "/" in key
    if not choice or override.is_sweep_override() or isinstance(value, str | list | dict):
        return
    if not (override.is_delete() and value is None):
        names = sorted(file.stem for file in groups[key].glob("*.yaml")) if key in groups else ["a name"]
        raise ValueError(f"{word}: choose {', '.join(names)}")


@contextmanager
def propagate_hydra_errors():
    """Hydra hands its own errors on, and the environment is then as it was."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def one_line_errors(asked: bool):
    """Exit with one line for what a user can mend; everything else, or all when `asked`, keeps its traceback."""
    try:
        yield
    except Exception as error:
        if get_process_info().rank:
            time.sleep(FIRST_ERROR_DELAY)
        if asked or not is_user_error(error):
            if is_initialized():  # whoever fails must not wait for the others on its way out
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            raise
        print(
            f"error: {f'process {get_process_info().rank}: ' if get_process_info().rank else ''}{format_error(error)}",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def remove_unstarted_runs():
    """When a run fails before it starts, remove what Hydra made for it: `.hydra/`, and folders that are then empty."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    try:
        yield
    except BaseException:
        if hydra_config.output_subdir and not (folder / RUN_FILE).exists():
            shutil.rmtree(folder / hydra_config.output_subdir, ignore_errors=True)
            for empty in (folder, *list(folder.parents)[:2]):
                if empty == Path.cwd() or not empty.is_dir() or any(empty.iterdir()):
                    break
                empty.rmdir()
        raise


def unwrap_error(error: BaseException) -> BaseException:
    """What happened, below what Hydra wrapped around it."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def is_user_error(error: BaseException) -> bool:
    """Whether the message is meant for the user: the system's, the `ValueError`s of this package, and whatever is raised in Hydra
    and OmegaConf, which read nothing but what the user wrote.
    """
    error = unwrap_error(error)
    if isinstance(error, (HydraException, OmegaConfBaseException, OSError)):
        return True
    if is_raised_in(error, *HYDRA_PACKAGES):
        return True
    return isinstance(error, ValueError) and is_raised_in(error, PACKAGE)


def is_raised_in(error: BaseException, *packages: Path) -> bool:
    """Whether the line that raised it is one of these packages'."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(Path(frames[-1].filename).is_relative_to(package) for package in packages)


def format_error(error: BaseException) -> str:
    """One line: what was given, and what would be accepted; marks that a terminal would act on are spelled out."""
    error = unwrap_error(error)
    told = [part.strip() for part in str(error).split("Config search path")[0].splitlines() if part.strip()]
    if isinstance(error, HydraException):
        told = [part for part in told if not part.startswith(("full_key:", "object_type=", "See https"))]
        if error.__cause__ is not None and str(error.__cause__) not in str(error):
            told.append(str(error.__cause__).splitlines()[0])
    if isinstance(error, OmegaConfBaseException) and error.full_key and error.full_key not in told[0]:
        told = [f"{error.full_key}: {told[0]}"]
    known = isinstance(error, HydraException | OmegaConfBaseException) and str(error).strip()
    if not known and is_raised_in(error, *HYDRA_PACKAGES):
        told = [*told[:1], "of the words", *sys.argv[1:]]  # it does not say which
    said = " ".join(told) or type(error).__name__
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape", "surrogatepass").decode() for mark in said
    )
