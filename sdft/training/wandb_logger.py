"""W&B logger that never stops a run: every failure is one warning, and training continues."""

import os
import threading
from functools import wraps
from pathlib import Path
from weakref import WeakSet

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger

from sdft.runs.terminal import print_text

START_TIMEOUT = 20  # seconds for the server to answer, after which the run is logged offline
FINISH_TIMEOUT = 120  # seconds for uploads after the last step; the run folder has the rest
SHUTDOWN_GRACE = 10  # further seconds after which W&B's service process is abandoned
FAILED_RUNS = WeakSet()  # W&B runs whose failure has been reported
RUNNING = []  # W&B runs to be finished


def suppress_errors(method):
    """Wrap a logging method: warn at a run's first failure, and never raise."""

    @wraps(method)
    def attempt(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # any type: from W&B's service process, the disk or the server
            if self.run not in FAILED_RUNS:
                FAILED_RUNS.add(self.run)
                print_wandb_warning(f"W&B logging failed ({format_exception(error)})", self.run)

    return attempt


class SafeWandbLogger(WandbLogger):
    """Lightning's W&B logger, but starting, logging and finishing cannot fail."""

    def __init__(self, last_logged_step: int, settings: wandb.Settings, **options):
        """`settings` and `options` start the run. Values of steps before `last_logged_step`, which it has, are skipped."""
        super().__init__(project=options["project"], save_dir=options["dir"])
        self.last_logged_step, self.settings, self.options, self.run = last_logged_step, settings, options, None

    @property
    @rank_zero_experiment
    def experiment(self):
        """The W&B run: online, else offline if the server is unreachable or rejects the key, else disabled."""
        if self.run is None:
            self.run = start_wandb_run(self.settings, self.options)
        return self.run

    log_hyperparams = suppress_errors(WandbLogger.log_hyperparams)
    log_table = suppress_errors(WandbLogger.log_table)

    @suppress_errors
    def log_metrics(self, metrics: dict, step: int | None = None) -> None:
        if step is None or step >= self.last_logged_step:
            super().log_metrics(metrics, step)

    @suppress_errors
    def log_image(self, key: str, images: list, step: int | None = None, **kwargs) -> None:
        if step is None or step >= self.last_logged_step:
            super().log_image(key, images, step, **kwargs)

    @suppress_errors
    def log_summary(self, values: dict) -> None:
        """Set summary values, the columns by which W&B sorts runs."""
        self.experiment.summary.update(values)


class NoRun:
    """Takes the place of a W&B run that could not be started in any mode: accepts every call and does nothing."""

    id, disabled = None, True

    def __getattr__(self, name: str):
        return self

    def __call__(self, *args, **kwargs):
        return self


def start_wandb_run(settings: wandb.Settings, options: dict):
    """Start a W&B run in the mode of `settings`, or the next that works of offline and disabled; else `NoRun`."""
    modes, first_error = ("online", "offline", "disabled"), None
    for mode in modes[modes.index(settings.mode) :]:
        settings.mode = mode
        try:
            run = wandb.init(settings=settings, **options)
        except Exception as error:
            first_error = first_error or error
            continue
        run.define_metric("trainer/global_step")  # the x-axis of Lightning's W&B logger
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        RUNNING.append(run)
        break
    else:
        run = NoRun()
    if first_error and run.disabled:
        print_wandb_warning(f"W&B failed to start ({format_exception(first_error)}); the run continues without it")
    elif first_error:
        print_wandb_warning(f"W&B failed to start online ({format_exception(first_error)}); logging offline", run)
    return run


def finish_wandb_run(status: int = 0) -> None:
    """Finish the current W&B run, if any, with the exit status of this process; limited in time, and never raises."""
    while RUNNING:
        finish_in_time(RUNNING.pop(), status)


def finish_in_time(run, status: int) -> None:
    error = run_with_timeout(FINISH_TIMEOUT + SHUTDOWN_GRACE, lambda: run.finish(exit_code=status))
    if error is None:
        return
    if not (isinstance(error, ConnectionError) and run in FAILED_RUNS):  # the service process died, already reported
        print_wandb_warning(f"W&B failed to finish ({format_exception(error)})", run)
    run_with_timeout(SHUTDOWN_GRACE, wandb.teardown)  # otherwise this process waits or fails again at exit


def run_with_timeout(seconds: float, task) -> BaseException | None:
    """Run `task` in a thread; return its exception, `TimeoutError` if it takes longer than `seconds`, or None."""
    outcome = []

    def attempt() -> None:
        try:
            task()
            outcome.append(None)
        except (Exception, SystemExit) as error:  # W&B exits if its service process had to be killed
            outcome.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else TimeoutError(f"no end in {seconds} seconds")


def print_wandb_warning(message: str, run=None) -> None:
    """Print one line, with the command that uploads the local files later."""
    folder = run and not run.disabled and run.settings.sync_dir
    upload = f"; later: wandb sync {os.path.relpath(Path(folder))}" if folder else ""
    print_text(f"warning    {message}{upload}", flush=True)


def format_exception(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
