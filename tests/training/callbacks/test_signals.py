"""A signal stops a run at its next step, with a checkpoint and the signal's exit status."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import QUICK_OVERRIDES, ROOT, run_training
from safetensors.torch import load_file

from sdft.training.callbacks.signals import SignalHandler

ADAPTER = "adapter/pytorch_lora_weights.safetensors"
OVERRIDES = [*QUICK_OVERRIDES, "batch_size=1", "data.per_digit=2", "log_every=1000", "validate_every=0", "ema=0.9"]


def start_run(folder, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), *OVERRIDES, *overrides, f"hydra.run.dir={folder}"]
    return subprocess.Popen(command, cwd=folder.parent, stdout=subprocess.PIPE, text=True)


def wait_for_checkpoint(folder) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step-*.ckpt")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def are_adapters_equal(one, other) -> bool:
    """Whether the tensors are bit-identical; the order of header entries may differ."""
    first, second = load_file(one / ADAPTER), load_file(other / ADAPTER)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_handled_only_during_a_run(number, tmp_path, monkeypatch):
    handlers, previous = [], signal.getsignal(number)
    monkeypatch.setattr(
        "sdft.training.callbacks.signals.SignalHandler.on_train_batch_start",
        lambda *_: handlers.append(signal.getsignal(number)),
        raising=False,
    )
    run_training(tmp_path, "steps=1", "sample_every=0", "prompts=[a]")
    assert handlers[0].__func__ is SignalHandler.handle_signal and signal.getsignal(number) is previous


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_saves_a_checkpoint_and_exits_with_its_status_and_the_run_resumes(tmp_path, number, status):
    one = start_run(tmp_path / "one", "steps=60", "save_every=5", "checkpoints_total_limit=1")
    wait_for_checkpoint(tmp_path / "one")
    one.send_signal(number)
    output = one.communicate(timeout=60)[0]
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert one.returncode == status and f"by {signal.Signals(number).name} at step" in output
    assert record["state"] == "stopped" and 5 <= record["stopped_at"] < 60
    assert (tmp_path / "one" / "checkpoints" / "last.ckpt").is_file() and not (tmp_path / "one" / "adapter").exists()
    if number == signal.SIGTERM:
        resume = [sys.executable, str(ROOT / "train.py"), "resume=one"]
        subprocess.run(resume, cwd=tmp_path, check=True, timeout=120, stdout=subprocess.DEVNULL)
        start_run(tmp_path / "uninterrupted", "steps=60").communicate(timeout=120)
        assert are_adapters_equal(tmp_path / "one", tmp_path / "uninterrupted")


@pytest.mark.slow
def test_two_processes_stop_together_and_resume(tmp_path):
    overrides = ["devices=2", "strategy=ddp", "steps=40"]
    one = start_run(tmp_path / "one", *overrides, "save_every=5", "checkpoints_total_limit=1")
    wait_for_checkpoint(tmp_path / "one")
    os.kill(one.pid, signal.SIGTERM)
    one.communicate(timeout=90)
    assert one.returncode == 143
    assert json.loads((tmp_path / "one" / "run.json").read_text())["state"] == "stopped"
    for name, more in {"two": [f"resume={tmp_path / 'one'}"], "uninterrupted": []}.items():
        assert start_run(tmp_path / name, *overrides, *more).wait(300) == 0
    assert are_adapters_equal(tmp_path / "two", tmp_path / "uninterrupted")
