"""Errors that a user can mend, in one line; all others keep their traceback."""

import os
import pathlib
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import hydra
import omegaconf
from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from sdft.config import PACKAGE
from sdft.distributed import get_process_info, is_initialized
from sdft.runs.invocation import ExitStatus
from sdft.runs.terminal import escape_unprintable, print_text

HYDRA_PACKAGES = (Path(hydra.__file__).parent, Path(omegaconf.__file__).parent)
STANDARD_PATHS = Path(pathlib.__file__)  # raises RuntimeError where `~` has no home directory
FIRST_ERROR_DELAY = 3  # seconds in which rank 0 reports an error that all ranks have; the launcher then ends the others


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
    except ExitStatus as end:
        sys.exit(end.status)
    except Exception as error:
        if is_caused_by_interrupt(error):
            sys.exit(130)
        rank = get_process_info().rank
        if rank:
            time.sleep(FIRST_ERROR_DELAY)
        if show_traceback or not is_user_error(error):
            if is_initialized():  # a normal exit would wait for the other ranks
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            raise
        print_text(f"error: {f'rank {rank}: ' if rank else ''}{format_error(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def is_caused_by_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C left Hydra or OmegaConf in a state in which their clean-up fails."""
    is_interrupted, context = False, error.__context__
    while context is not None and not is_interrupted:
        is_interrupted, context = isinstance(context, KeyboardInterrupt), context.__context__
    return is_interrupted and is_raised_in(error, *HYDRA_PACKAGES)


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
    if is_raised_in(error, *HYDRA_PACKAGES) or (
        isinstance(error, RuntimeError) and is_raised_in(error, STANDARD_PATHS)
    ):
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
    if isinstance(error, InterpolationKeyError):
        given = [argument for argument in sys.argv[1:] if "${" in argument]
        reason = "${…} stands for another option, and none has this name; rename a file whose name contains it"
        parts = [f"{' '.join(given)}: {reason}"] if given else [*parts, f"({reason})"]
    is_descriptive = isinstance(error, HydraException | OmegaConfBaseException) and str(error).strip()
    if not is_descriptive and is_raised_in(error, *HYDRA_PACKAGES):
        parts = [*parts[:1], "in the options", *sys.argv[1:]]  # the message does not name the option
    message = " ".join(parts) or type(error).__name__
    return escape_unprintable(message)
