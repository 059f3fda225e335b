"""W&B failures do not stop a run or change its exit status."""

import csv
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import wandb
from conftest import QUICK_OVERRIDES, ROOT, run_training
from PIL import Image
from test_loggers import read_wandb_records
from wandb.sdk import wandb_setup

from sdft.training import loggers
from sdft.training import wandb_logger as tracking
from sdft.training.finish import close_loggers_on_exit
from sdft.training.run_setup import get_wandb_run_info

KEY = "a" * 40  # the length of a valid key
KILL = """
import os, runpy, signal, sys
from sdft.training.callbacks.metrics import TrainingMetrics
from wandb.sdk import wandb_setup

original = TrainingMetrics.report_metrics
def report_metrics(self, trainer, *args, **kwargs):
    if trainer.global_step == 2:
        os.kill(wandb_setup.singleton()._connection._proc._process.pid, signal.SIGKILL)
    return original(self, trainer, *args, **kwargs)
TrainingMetrics.report_metrics = report_metrics
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path(os.environ["TRAIN"], run_name="__main__")
"""


@pytest.fixture
def fresh_wandb(monkeypatch, tmp_path):
    """W&B without earlier state, with short timeouts, torn down after the test; returns the working directory."""
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
def rejecting_server():
    """The address of a server that rejects every key."""

    class RejectingHandler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), RejectingHandler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("problem", ["unreachable", "rejected key", "invalid key"])
def test_a_failing_server_leaves_the_run_offline_in_time(problem, fresh_wandb, rejecting_server, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9" if problem == "unreachable" else rejecting_server)
    if problem == "invalid key":
        monkeypatch.setenv("WANDB_API_KEY", "short")
    start, logger = time.monotonic(), loggers.build_wandb_logger("run", "run", mode="online")
    logger.log_metrics({"train/loss": 0.5}, 1)
    assert time.monotonic() - start < tracking.START_TIMEOUT + 10
    (file,) = fresh_wandb.glob("run/wandb/offline-run-*/run-*.wandb")
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert f"offline; later: wandb sync {file.parent.relative_to(fresh_wandb)}" in warning
    tracking.finish_wandb_run(3)
    records = read_wandb_records(file)
    assert any(record.WhichOneof("record_type") == "history" for record in records) and records[-1].exit.exit_code == 3


def test_a_run_continues_without_wandb_if_offline_mode_fails_too(fresh_wandb, monkeypatch, capsys):
    init = wandb.init
    monkeypatch.setattr(
        wandb, "init", lambda **kwargs: init(**kwargs) if kwargs["settings"].mode == "disabled" else 1 / 0
    )
    logger = loggers.build_wandb_logger("run", "run", mode="online")
    logger.log_hyperparams({"rank": 1})
    logger.log_metrics({"loss": 1.0}, 1)
    assert logger.experiment.id and logger.experiment.disabled
    (warning,) = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning") and "W&B" in warning and "(division by zero)" in warning


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_a_run_continues_if_wandb_starts_in_no_mode(mode, fresh_wandb, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(wandb, "init", lambda **kwargs: calls.append(kwargs["settings"].mode) or 1 / 0)
    logger = loggers.build_wandb_logger("run", "run", mode=mode)
    logger.log_hyperparams({"rank": 1})
    logger.log_metrics({"loss": 1.0}, 1)
    logger.log_image("image", [Image.new("RGB", (8, 8))])
    logger.log_table("table", ["one"], [[1]])
    logger.log_summary({"loss": 1.0})
    modes = ["online", "offline", "disabled"]
    assert calls == modes[modes.index(mode) :] and get_wandb_run_info([logger], None) == {}
    (warning,) = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning") and "(division by zero)" in warning


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"project": "a:b?c#d"}, "logger.project="),
        ({"project": " "}, "logger.project="),
        ({"project": "p" * 129}, "logger.project="),
        ({"name": "n" * 129}, "name="),
        ({"group": "g" * 129}, "logger.group="),
        ({"tags": ["t" * 65]}, "tags: "),
        ({"tags": ["a", ""]}, "tags: "),
    ],
)
def test_names_that_wandb_refuses_are_refused_first(options, key):
    valid = {"project": "my project", "name": "ä" * 128, "group": None, "tags": ["t" * 64]}
    loggers.check_wandb_names(valid)
    with pytest.raises(ValueError, match=key):
        loggers.check_wandb_names(valid | options)


def test_failures_of_media_are_reported_once(fresh_wandb, monkeypatch, capsys):
    logger = loggers.build_wandb_logger("run", "run", mode="offline")
    logger.log_metrics({"loss": 1.0}, 1)
    for _ in range(2):
        logger.log_image("image", ["no such file.png"])
        logger.log_table("table", ["one"], [["too", "many"]])
    (warning,) = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning") and "W&B" in warning


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGSTOP"])
@pytest.mark.slow
def test_finishing_does_not_wait_for_a_dead_or_stopped_service(signal_name, fresh_wandb, capsys):
    import signal

    logger = loggers.build_wandb_logger("run", "run", mode="offline")
    logger.log_metrics({"loss": 1.0}, 1)
    process = wandb_setup.singleton()._connection._proc._process
    os.kill(process.pid, getattr(signal, signal_name))
    try:
        logger.log_metrics({"loss": 2.0}, 2)
        start = time.monotonic()
        with close_loggers_on_exit():
            pass
        assert time.monotonic() - start < tracking.FINISH_TIMEOUT + 3 * tracking.SHUTDOWN_GRACE and wandb.run is None
    finally:
        process.kill()
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert "later: wandb sync run/wandb/offline-run-" in warning
    loggers.build_wandb_logger("again", "again", mode="offline").log_metrics(
        {"loss": 1.0}, 1
    )  # in a new service process
    tracking.finish_wandb_run()
    assert read_wandb_records(*fresh_wandb.glob("again/wandb/offline-run-*/run-*.wandb"))[-1].exit.exit_code == 0


def test_the_exit_status_of_a_failed_run_reaches_wandb(fresh_wandb):
    loggers.build_wandb_logger("run", "run", mode="offline").log_metrics({"loss": 1.0}, 1)
    with pytest.raises(RuntimeError, match="training failed"), close_loggers_on_exit():
        raise RuntimeError("training failed")
    assert read_wandb_records(*fresh_wandb.glob("run/wandb/offline-run-*/run-*.wandb"))[-1].exit.exit_code == 1


def test_a_run_continues_when_wandb_dies(fresh_wandb, monkeypatch, capsys):
    from sdft.training.callbacks.metrics import TrainingMetrics

    original = TrainingMetrics.report_metrics

    def report_metrics(self, trainer, *args, **kwargs):
        if trainer.global_step == 2:
            wandb_setup.singleton()._connection._proc._process.kill()
        return original(self, trainer, *args, **kwargs)

    monkeypatch.setattr(TrainingMetrics, "report_metrics", report_metrics)
    _, folder = run_training(fresh_wandb, "steps=4", "logger=wandb", "logger.mode=offline")
    output = capsys.readouterr()
    (warning,) = [line for line in output.out.splitlines() if line.startswith("warning") and "W&B" in line]
    assert "later: wandb sync run/wandb/offline-run-" in warning and "Traceback" not in output.err
    assert count_losses(folder) == 4


def count_losses(folder):
    """The number of training losses in `metrics.csv`."""
    with open(folder / "metrics.csv", newline="") as file:
        return sum(bool(row["train/loss"]) for row in csv.DictReader(file))


@pytest.mark.slow
def test_wandb_dying_during_training_costs_a_run_one_line(tmp_path):
    overrides = [*QUICK_OVERRIDES, "steps=4", "logger=wandb", "logger.mode=offline", "hydra.run.dir=run"]
    done = subprocess.run(
        [sys.executable, "-c", KILL, *overrides], cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TRAIN": str(ROOT / "train.py")}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    (warning,) = [line for line in done.stdout.splitlines() if line.startswith("warning") and "W&B" in line]
    assert "later: wandb sync run/wandb/offline-run-" in warning
    assert count_losses(tmp_path / "run") == 4
    assert (tmp_path / "run" / "adapter").is_dir() and '"state": "finished"' in (tmp_path / "run/run.json").read_text()
