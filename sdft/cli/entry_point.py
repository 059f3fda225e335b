"""Hydra command line with one-line errors; a run that fails before it starts leaves no folder behind."""

import inspect
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning idle OpenMP threads slow a busy machine twentyfold

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from sdft.cli.errors import propagate_hydra_errors, report_errors_in_one_line
from sdft.cli.output_folders import check_output_options, remove_empty_folders
from sdft.cli.overrides import INFO_FLAGS, MULTIRUN_FLAGS, check_single_values, split_arguments
from sdft.cli.process import prepare_process
from sdft.config import CONF
from sdft.distributed import get_process_info, prepare_launched_process
from sdft.options.composition import check_composition, explain_unknown_override
from sdft.runs.invocation import Invocation, StopRequest
from sdft.runs.resume import restore_overrides
from sdft.runs.terminal import print_text


def hydra_main(config: str) -> Callable:
    """Make `task(cfg)` or `task(cfg, invocation)` a Hydra program over `conf/CONFIG.yaml`.

    HYDRA_FULL_ERROR=1 shows tracebacks. The dispatcher calls the program with the name that was typed.
    """
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"

    def decorate(task: Callable) -> Callable[..., None]:
        takes_invocation = len(inspect.signature(task).parameters) > 1

        @wraps(task)
        def main(name: str | None = None) -> None:
            program = get_program(name)

            def run(cfg: DictConfig) -> None:
                with report_errors_in_one_line(show_traceback), remove_empty_folders():
                    for note in check_composition(config, cfg, HydraConfig.get()):
                        if not get_process_info().rank:
                            print_text(f"recipe     {note}", file=sys.stderr)
                    check_output_options(cfg)
                    task(cfg, *([build_invocation(name, program, signals)] if takes_invocation else []))

            with (
                prepare_process() as signals,
                propagate_hydra_errors(),
                report_errors_in_one_line(show_traceback),
                name_unknown_options(config),
            ):
                flags, overrides = split_arguments(sys.argv[1:])
                if config == "train":
                    overrides = restore_overrides(overrides)
                if {"--help", "-h"} & set(flags):
                    from sdft.cli.help import render_help

                    print_text(*render_help(CONF, config, overrides).split("\n"))
                    return
                prepare_launched_process()
                if get_process_info().rank:
                    overrides = discard_run_folder(overrides)
                sys.argv[1:] = [*flags, *overrides]
                sweep_arguments = [a for a in sys.argv[1:] if a in MULTIRUN_FLAGS or a.startswith("sweeps=")]
                if sweep_arguments and not set(INFO_FLAGS) & set(sys.argv):
                    sys.exit(run_requested_sweep(config, sweep_arguments, program))
                check_single_values(sys.argv[1:])
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(run)()

        return main

    return decorate


@contextmanager
def name_unknown_options(config: str):
    """Replace Hydra's refusal of an unknown key by one with the option that was meant."""
    try:
        yield
    except HydraException as error:
        _, overrides = split_arguments(sys.argv[1:])
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            message = explain_unknown_override(error, config, overrides)
        if message:
            raise ValueError(message) from None
        raise


def get_program(name: str | None) -> tuple[str, ...]:
    """The command that starts this program again, without its arguments: `name` with the dispatcher, else the script."""
    return (sys.executable, "-m", "sdft", name) if name else (sys.executable, os.path.abspath(sys.argv[0]))


def build_invocation(name: str | None, program: tuple[str, ...], stop_request: StopRequest) -> Invocation:
    """What Hydra and the command line say of this start."""
    hydra_config = HydraConfig.get()
    return Invocation(
        folder=Path(hydra_config.runtime.output_dir),
        command=(*(("sdft", name) if name else (Path(sys.argv[0]).name,)), *sys.argv[1:]),
        overrides=tuple(hydra_config.overrides.task),
        choices=dict(hydra_config.runtime.choices),
        restart=program,
        arguments=tuple(sys.argv[1:]),
        stop_request=stop_request,
    )


def discard_run_folder(overrides: list[str]) -> list[str]:
    """The overrides of a rank above 0, which must not create a run folder."""
    others = [override for override in overrides if not override.startswith("hydra.run.dir=")]
    return [*others, "hydra.run.dir=.", "hydra.output_subdir=null"]


def run_requested_sweep(config: str, sweep_arguments: list[str], program: tuple[str, ...]) -> int:
    """Run the sweep of this command line, whose `-m` and `sweeps=` are `sweep_arguments`; returns the exit status."""
    if config != "train":
        raise ValueError(f"{' '.join(sweep_arguments)}: only train.py runs sweeps; evaluate.py accepts run=[A,B]")
    from sdft.sweeps.sweep import run_sweep

    names = [argument.removeprefix("sweeps=") for argument in sweep_arguments if argument not in MULTIRUN_FLAGS]
    if len(names) > 1:
        raise ValueError(f"{' '.join(sweep_arguments)}: mutually exclusive; give one of them")
    return run_sweep(names[-1] if names else None, [a for a in sys.argv[1:] if a not in sweep_arguments], program)
