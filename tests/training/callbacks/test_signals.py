"""A signal ends a run at its next step, saved, with the status that says so."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import QUICK_OVERRIDES, ROOT, trained
from safetensors.torch import load_file

from sdft.training.callbacks.signals import SignalHandler

ADAPTER = "adapter/pytorch_lora_weights.safetensors"
WORDS = [*QUICK_OVERRIDES, "batch_size=1", "data.per_digit=2", "log_every=1000", "validate_every=0", "ema=0.9"]


def started(place, *words: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), *WORDS, *words, f"hydra.run.dir={place}"]
    return subprocess.Popen(command, cwd=place.parent, stdout=subprocess.PIPE, text=True)


def stepping(place) -> None:
    deadline = time.monotonic() + 120
    while not list(place.glob("checkpoints/step-*.ckpt")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def same(one, other) -> bool:
    """To the bit; the order of what a file's header tells is its library's."""
    ours, theirs = load_file(one / ADAPTER), load_file(other / ADAPTER)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_heard_by_a_run_alone_and_given_back(number, tmp_path, monkeypatch):
    heard, before = [], signal.getsignal(number)
    monkeypatch.setattr(
        "sdft.training.callbacks.signals.SignalHandler.on_train_start",
        lambda *_: heard.append(signal.getsignal(number)),
        raising=False,
    )
    trained(tmp_path, "steps=1", "sample_every=0", "prompts=[a]")
    assert heard[0].__func__ is SignalHandler.handle_signal and signal.getsignal(number) is before


OTHERS = [pytest.param(*pair, marks=pytest.mark.slow) for pair in ((signal.SIGINT, 130), (signal.SIGUSR1, 138))]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), *OTHERS])
def test_a_signal_saves_and_ends_with_its_status_and_the_run_goes_on(tmp_path, number, status):
    one = started(tmp_path / "one", "steps=60", "save_every=5", "checkpoints_total_limit=1")
    stepping(tmp_path / "one")
    one.send_signal(number)
    told = one.communicate(timeout=60)[0]
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert one.returncode == status and f"stopped  by {signal.Signals(number).name} at step" in told
    assert record["state"] == "stopped" and 5 <= record["stopped_at"] < 60
    assert (tmp_path / "one" / "checkpoints" / "last.ckpt").is_file() and not (tmp_path / "one" / "adapter").exists()
    if number == signal.SIGTERM:
        again = [sys.executable, str(ROOT / "train.py"), "resume=one"]
        subprocess.run(again, cwd=tmp_path, check=True, timeout=120, stdout=subprocess.DEVNULL)
        started(tmp_path / "whole", "steps=60").communicate(timeout=120)
        assert same(tmp_path / "one", tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(tmp_path):
    both = ["devices=2", "strategy=ddp", "steps=40"]
    one = started(tmp_path / "one", *both, "save_every=5", "checkpoints_total_limit=1")
    stepping(tmp_path / "one")
    os.kill(one.pid, signal.SIGTERM)
    one.communicate(timeout=90)
    assert one.returncode == 143
    assert json.loads((tmp_path / "one" / "run.json").read_text())["state"] == "stopped"
    for name, more in {"two": [f"resume={tmp_path / 'one'}"], "whole": []}.items():
        assert started(tmp_path / name, *both, *more).wait(300) == 0
    assert same(tmp_path / "two", tmp_path / "whole")
