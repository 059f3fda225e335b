"""A W&B run that never harms the run it tells of: what W&B cannot do is said in one line, and training goes on."""

import os
import threading
from functools import wraps
from pathlib import Path
from weakref import WeakSet

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger

START_TIMEOUT = 20  # seconds that a server has to answer; then the run is logged offline
FINISH_TIMEOUT = (
    120  # seconds that uploads may take after the last step; what is missing then still lies in the run's folder
)
SHUTDOWN_GRACE = 10  # seconds on top, after which W&B's own process is not waited for either
FAILED_RUNS = WeakSet()  # runs of which that was told


def suppress_errors(method):
    """The same method, whose first failure is told and whose failures stop nothing."""

    @wraps(method)
    def attempt(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # whatever W&B's process, disk or server may think of
            if self._experiment not in FAILED_RUNS:
                FAILED_RUNS.add(self._experiment)
                print_wandb_warning(
                    f"W&B no longer takes what this run logs ({format_exception(error)})", self._experiment
                )

    return attempt


class SafeWandbLogger(WandbLogger):
    """Lightning's logger with a beginning, a middle and an end that cannot fail."""

    def __init__(self, last_logged_step: int = 0, **words):
        """What was logged at steps before `last_logged_step` is not logged again."""
        super().__init__(**words)
        self.last_logged_step = last_logged_step
        self._wandb_init.pop("anonymous", None)  # Lightning passes what wandb no longer takes, and wandb warns

    @property
    @rank_zero_experiment
    def experiment(self):
        """The run: online, or offline where no server answers or takes the key, or one that logs nothing."""
        settings = self._wandb_init["settings"]
        try:
            return super().experiment
        except Exception as error:
            if settings.mode != "online":
                print_wandb_warning(f"W&B does not start ({format_exception(error)}); the run goes on without it")
                return self.begin("disabled")
            run = self.begin("offline")
            if not run.disabled:
                print_wandb_warning(
                    f"W&B cannot be reached or refuses ({format_exception(error)}); the run is logged offline", run
                )
            return run

    def begin(self, mode: str):
        """Try again, in another mode."""
        self._wandb_init["settings"].mode = mode
        return self.experiment

    log_hyperparams = suppress_errors(WandbLogger.log_hyperparams)
    log_table = suppress_errors(WandbLogger.log_table)

    @suppress_errors
    def log_metrics(self, metrics: dict, step: int | None = None) -> None:
        if step is None or step >= self.last_logged_step:
            super().log_metrics(metrics, step)

    @suppress_errors
    def log_image(self, key: str, images: list, step: int | None = None, **about) -> None:
        if step is None or step >= self.last_logged_step:
            super().log_image(key, images, step, **about)

    @suppress_errors
    def log_summary(self, values: dict) -> None:
        """What runs are sorted by."""
        self.experiment.summary.update(values)


def finish_wandb_run(status: int = 0) -> None:
    """End W&B's run, if there is one, with the exit status that the process will have. Bounded, and without an exception."""
    if (run := wandb.run) is None:
        return
    failure = run_with_timeout(FINISH_TIMEOUT + SHUTDOWN_GRACE, lambda: run.finish(exit_code=status))
    if failure is None:
        return
    if not (isinstance(failure, ConnectionError) and run in FAILED_RUNS):  # W&B's process is gone, as was told
        print_wandb_warning(f"W&B did not end properly ({format_exception(failure)})", run)
    run_with_timeout(SHUTDOWN_GRACE, wandb.teardown)  # or it is waited for, or fails again, when this process ends
    wandb.run = None


def run_with_timeout(seconds: float, task) -> BaseException | None:
    """What `task` raised, if anything; a `TimeoutError` when it is still at it after `seconds`."""
    found = []

    def attempt() -> None:
        try:
            task()
            found.append(None)
        except (Exception, SystemExit) as error:  # W&B exits where its process had to be killed
            found.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else TimeoutError(f"no end in {seconds} seconds")


def print_wandb_warning(what: str, run=None) -> None:
    """One line, with how to bring to the server later what is in the run's folder."""
    folder = run and not run.disabled and run.settings.sync_dir
    later = f"; later: wandb sync {os.path.relpath(Path(folder))}" if folder else ""
    print(f"warning  {what}{later}", flush=True)


def format_exception(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
