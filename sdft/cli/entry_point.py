"""Hydra command line with one-line errors; a run that fails before it starts leaves no folder behind."""

import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning idle OpenMP threads slow a busy machine twentyfold

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

# Hydra composes the whole config only to read `hydra.mode`, which `check_override` refuses
Hydra.get_mode = lambda *_, **__: None
HYDRA_PACKAGES = (Path(hydra.__file__).parent, Path(omegaconf.__file__).parent)
INFO_FLAGS = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version"}  # print and exit
MULTIRUN_FLAGS = ("-m", "--multirun")
FIRST_ERROR_DELAY = 3  # seconds in which rank 0 reports an error that all ranks have; the launcher then ends the others
RUN_FILE = "run.json"  # exists in the folder of every started run


def hydra_main(config: str) -> Callable:
    """Make `task(cfg)` a Hydra program over `conf/CONFIG.yaml`. HYDRA_FULL_ERROR=1 shows tracebacks."""

    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        def run(cfg: DictConfig) -> None:
            with report_errors_in_one_line(show_traceback), remove_unstarted_runs():
                task(cfg)

        program = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(run)

        def main() -> None:
            with propagate_hydra_errors(), report_errors_in_one_line(show_traceback):
                parse_overrides(sys.argv[1:])
                if config == "train":
                    sys.argv[1:] = restore_overrides(sys.argv[1:])
                if {"--help", "-h"} & set(sys.argv):
                    from sdft.cli.help import render_help

                    print(render_help(CONF, config, parse_overrides(sys.argv[1:])))
                    return
                prepare_launched_process()
                sweep_arguments = [a for a in sys.argv[1:] if a in MULTIRUN_FLAGS or a.startswith("sweeps=")]
                if sweep_arguments and not INFO_FLAGS & set(sys.argv):
                    sys.exit(run_requested_sweep(config, sweep_arguments))
                program()

        return main

    return decorate


def run_requested_sweep(config: str, sweep_arguments: list[str]) -> int:
    """Run the sweep of this command line, whose `-m` and `sweeps=` are `sweep_arguments`; returns the exit status."""
    if config != "train":
        raise ValueError(f"{' '.join(sweep_arguments)}: only train.py runs sweeps; evaluate.py accepts run=[A,B]")
    from sdft.sweeps.sweep import run_sweep

    names = [argument.removeprefix("sweeps=") for argument in sweep_arguments if argument not in MULTIRUN_FLAGS]
    if len(names) > 1:
        raise ValueError(f"{' '.join(sweep_arguments)}: mutually exclusive; give one of them")
    return run_sweep(names[-1] if names else None, [a for a in sys.argv[1:] if a not in sweep_arguments])


def parse_overrides(arguments: list[str]) -> list[str]:
    """Return the arguments that are not flags; `ValueError` for flags that Hydra would answer with a page or a traceback."""
    from hydra._internal.utils import get_args_parser

    def raise_usage_error(message: str):
        raise ValueError(f"{message}; options are KEY=VALUE, and --help lists them")

    parser = get_args_parser()
    parser.error = raise_usage_error
    parsed = parser.parse_args(arguments)
    if parsed.experimental_rerun is not None:
        raise ValueError(
            f"--experimental-rerun={parsed.experimental_rerun}: reads a pickle, which can execute code; "
            "give the overrides instead"
        )
    if parsed.resolve and not (parsed.cfg or parsed.help):
        raise ValueError("--resolve: only with --cfg job")
    modes = {"--run": parsed.run, "--multirun": parsed.multirun, "--cfg": parsed.cfg, "--info": parsed.info}
    if len(selected := [flag for flag, value in modes.items() if value]) > 1:
        raise ValueError(f"{' '.join(selected)}: mutually exclusive; give one of them")
    for override in parsed.overrides:
        check_override(override)
    return parsed.overrides


def check_override(text: str) -> None:
    """Check the form KEY=VALUE and the name of a group's choice; Hydra's own errors do not name the override."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        override = OverridesParser.create().parse_override(text)
        value = override.value()
    except HydraException as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{text!r}: not KEY=VALUE; quote values with punctuation, as 'KEY=\"a: b\"' ({reason})"
        ) from None
    key = override.key_or_group
    groups = {folder.name: folder for folder in CONF.iterdir() if folder.is_dir()}
    if not key:
        raise ValueError(f"{text!r}: not KEY=VALUE; --help lists the options")
    if key == "hydra.mode":
        raise ValueError(f"{text}: Hydra's own sweeps run all jobs in one process; use -m")
    is_group = key in groups or key == "hydra" or "/" in key
    if not is_group or override.is_sweep_override() or isinstance(value, str | list | dict):
        return
    if not (override.is_delete() and value is None):
        names = sorted(file.stem for file in groups[key].glob("*.yaml")) if key in groups else ["a name"]
        raise ValueError(f"{text}: choose {', '.join(names)}")


@contextmanager
def propagate_hydra_errors():
    """Make Hydra raise its errors instead of exiting; restores the environment afterwards."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def report_errors_in_one_line(show_traceback: bool):
    """Print user errors in one line and exit with status 1; raise all others, or every error with `show_traceback`."""
    try:
        yield
    except Exception as error:
        rank = get_process_info().rank
        if rank:
            time.sleep(FIRST_ERROR_DELAY)
        if show_traceback or not is_user_error(error):
            if is_initialized():  # a normal exit would wait for the other ranks
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            raise
        print(f"error: {f'rank {rank}: ' if rank else ''}{format_error(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def remove_unstarted_runs():
    """If a run fails before it starts, remove `.hydra/`, which Hydra has created for it, and the folders left empty."""
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
    """Return the error that Hydra has wrapped while building an object."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def is_user_error(error: BaseException) -> bool:
    """Whether the message is for the user: OS errors, `ValueError`s of this package, and errors raised in Hydra or
    OmegaConf, which only read user input.
    """
    error = unwrap_error(error)
    if isinstance(error, (HydraException, OmegaConfBaseException, OSError)):
        return True
    if is_raised_in(error, *HYDRA_PACKAGES):
        return True
    return isinstance(error, ValueError) and is_raised_in(error, PACKAGE)


def is_raised_in(error: BaseException, *packages: Path) -> bool:
    """Whether the line that raised the error is in one of these packages."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(Path(frames[-1].filename).is_relative_to(package) for package in packages)


def format_error(error: BaseException) -> str:
    """Error message in one line, with unprintable characters escaped."""
    error = unwrap_error(error)
    parts = [part.strip() for part in str(error).split("Config search path")[0].splitlines() if part.strip()]
    if isinstance(error, HydraException):
        parts = [part for part in parts if not part.startswith(("full_key:", "object_type=", "See https"))]
        if error.__cause__ is not None and str(error.__cause__) not in str(error):
            parts.append(str(error.__cause__).splitlines()[0])
    if isinstance(error, OmegaConfBaseException) and error.full_key and error.full_key not in parts[0]:
        parts = [f"{error.full_key}: {parts[0]}"]
    is_descriptive = isinstance(error, HydraException | OmegaConfBaseException) and str(error).strip()
    if not is_descriptive and is_raised_in(error, *HYDRA_PACKAGES):
        parts = [*parts[:1], "in the options", *sys.argv[1:]]  # the message does not name the option
    message = " ".join(parts) or type(error).__name__
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in message
    )
