"""Whatever becomes of W&B, the run it tells of goes on, and ends with its own exit status."""

import csv
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import wandb
from conftest import QUICK_OVERRIDES, ROOT, trained
from test_loggers import records
from wandb.sdk import wandb_setup

from sdft.training import loggers
from sdft.training import wandb_logger as tracking
from sdft.training.finish import close_loggers_on_exit

KEY = "a" * 40  # as long as keys are
KILL = """
import os, runpy, signal, sys
from sdft.training.callbacks.metrics import TrainingMetrics
from wandb.sdk import wandb_setup

whole = TrainingMetrics.report
def report(self, trainer, *rest, **more):
    if trainer.global_step == 2:
        os.kill(wandb_setup.singleton()._connection._proc._process.pid, signal.SIGKILL)
    return whole(self, trainer, *rest, **more)
TrainingMetrics.report = report
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path(os.environ["TRAIN"], run_name="__main__")
"""


@pytest.fixture
def afresh(monkeypatch, tmp_path):
    """W&B reads its settings anew, has a few seconds, and leaves nothing to the tests that follow."""
    wandb.teardown()
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for name, seconds in {"START_TIMEOUT": 3, "FINISH_TIMEOUT": 3, "SHUTDOWN_GRACE": 2}.items():
        monkeypatch.setattr(tracking, name, seconds)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    tracking.finish_wandb_run()
    wandb.teardown()


@pytest.fixture
def refusing():
    """The address of a server that takes no key."""

    class Refusal(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("why", ["nobody answers", "the key is refused", "the key is none"])
def test_a_server_that_cannot_be_had_leaves_the_run_offline_in_time(why, afresh, refusing, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9" if why == "nobody answers" else refusing)
    if why == "the key is none":
        monkeypatch.setenv("WANDB_API_KEY", "short")
    began, logger = time.monotonic(), loggers.build_wandb_logger("run", "run", mode="online")
    logger.log_metrics({"train/loss": 0.5}, 1)
    assert time.monotonic() - began < tracking.START_TIMEOUT + 10
    (file,) = afresh.glob("run/wandb/offline-run-*/run-*.wandb")
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert f"the run is logged offline; later: wandb sync {file.parent.relative_to(afresh)}" in warning
    tracking.finish_wandb_run(3)
    told = records(file)
    assert any(record.WhichOneof("record_type") == "history" for record in told) and told[-1].exit.exit_code == 3


def test_what_fails_online_and_offline_goes_on_without_wandb(afresh, monkeypatch, capsys):
    init = wandb.init
    monkeypatch.setattr(
        wandb, "init_lora_weights", lambda **words: init(**words) if words["settings"].mode == "disabled" else 1 / 0
    )
    logger = loggers.build_wandb_logger("run", "run", mode="online")
    logger.log_hyperparams({"rank": 1})
    logger.log_metrics({"loss": 1.0}, 1)
    assert logger.experiment.id and logger.experiment.disabled
    said = capsys.readouterr().out
    assert said.splitlines() == ["warning  W&B does not start (division by zero); the run goes on without it"]


def test_failures_of_media_are_told_once(afresh, monkeypatch, capsys):
    logger = loggers.build_wandb_logger("run", "run", mode="offline")
    logger.log_metrics({"loss": 1.0}, 1)
    for _ in range(2):
        logger.log_image("picture", ["no such file.png"])
        logger.log_table("table", ["one"], [["too", "many"]])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith("warning  W&B no longer takes what this run logs (")


@pytest.mark.parametrize("way", ["SIGKILL", "SIGSTOP"])
def test_the_end_does_not_wait_for_a_dead_or_silent_process(way, afresh, capsys):
    import signal

    logger = loggers.build_wandb_logger("run", "run", mode="offline")
    logger.log_metrics({"loss": 1.0}, 1)
    process = wandb_setup.singleton()._connection._proc._process
    os.kill(process.pid, getattr(signal, way))
    try:
        logger.log_metrics({"loss": 2.0}, 2)
        began = time.monotonic()
        with close_loggers_on_exit():
            pass
        assert time.monotonic() - began < tracking.FINISH_TIMEOUT + 3 * tracking.SHUTDOWN_GRACE and wandb.run is None
    finally:
        process.kill()
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert "later: wandb sync run/wandb/offline-run-" in warning
    loggers.build_wandb_logger("again", "again", mode="offline").log_metrics({"loss": 1.0}, 1)  # a process of its own
    tracking.finish_wandb_run()
    assert records(*afresh.glob("again/wandb/offline-run-*/run-*.wandb"))[-1].exit.exit_code == 0


def test_the_exit_status_of_a_failed_run_reaches_wandb(afresh):
    loggers.build_wandb_logger("run", "run", mode="offline").log_metrics({"loss": 1.0}, 1)
    with pytest.raises(RuntimeError, match="of the run"), close_loggers_on_exit():
        raise RuntimeError("of the run")
    assert records(*afresh.glob("run/wandb/offline-run-*/run-*.wandb"))[-1].exit.exit_code == 1


def test_a_run_goes_on_when_wandb_dies(afresh, monkeypatch, capsys):
    from sdft.training.callbacks.metrics import TrainingMetrics

    whole = TrainingMetrics.report

    def report(self, trainer, *rest, **more):
        if trainer.global_step == 2:
            wandb_setup.singleton()._connection._proc._process.kill()
        return whole(self, trainer, *rest, **more)

    monkeypatch.setattr(TrainingMetrics, "report", report)
    _, folder = trained(afresh, "steps=4", "logger=wandb", "logger.mode=offline")
    said = capsys.readouterr()
    (warning,) = [line for line in said.out.splitlines() if line.startswith("warning") and "W&B" in line]
    assert "later: wandb sync run/wandb/offline-run-" in warning and "Traceback" not in said.err
    assert losses(folder) == 4


def losses(folder):
    """How many steps have theirs in `metrics.csv`."""
    with open(folder / "metrics.csv", newline="") as file:
        return sum(bool(row["train/loss"]) for row in csv.DictReader(file))


@pytest.mark.slow
def test_wandb_dying_in_the_middle_costs_a_run_one_line(tmp_path):
    words = [*QUICK_OVERRIDES, "steps=4", "logger=wandb", "logger.mode=offline", "hydra.run.dir=run"]
    done = subprocess.run(
        [sys.executable, "-c", KILL, *words], cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TRAIN": str(ROOT / "train.py")}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    (warning,) = [line for line in done.stdout.splitlines() if line.startswith("warning") and "W&B" in line]
    assert "later: wandb sync run/wandb/offline-run-" in warning
    assert losses(tmp_path / "run") == 4
    assert (tmp_path / "run" / "adapter").is_dir() and '"state": "finished"' in (tmp_path / "run/run.json").read_text()
