"""Killed at any moment, a run goes on, and ends with the weights, metrics and samples of one that never was."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import QUICK_OVERRIDES, ROOT
from test_resume import same

from sdft.runs.files import read_json

WORDS = [
    *QUICK_OVERRIDES, "steps=12", "save_every=2", "checkpoints_total_limit=2", "sample_every=4", "validate_every=5", "log_every=3", "ema=0.9", "rank=2",
    "data.per_digit=2", "data.digits=[0,1,2]", "hydra.run.dir=run",
]  # fmt: skip
KILLS = 20
SERVER = """
import json, os, runpy, sys
import torch, lightning, diffusers, transformers, peft, lightning.pytorch.loggers, transformers.modeling_layers  # once for all
from diffusers import AutoencoderKL, UNet2DConditionModel, StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer
import sdft.training.training_run
train = sys.argv[1]
replace = os.replace

def dies_at(count, early):
    def counted(*names):
        nonlocal count
        count -= 1
        if count == 0 and early:
            os.kill(os.getpid(), 9)
        replace(*names)
        if count == 0:
            os.kill(os.getpid(), 9)
    return counted

for line in sys.stdin:
    told = json.loads(line)
    pid = os.fork()
    if not pid:
        os.chdir(told["home"])
        os.environ |= told["environment"]
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.stdin = open(os.devnull)
        sys.argv = [train, *told["words"]]
        if told["file"]:
            os.replace = dies_at(*told["file"])
        code = 1
        try:
            runpy.run_path(train, run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def start():
    """A function that runs train.py in a process of its own, which has its imports already; returns its exit status."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(ROOT / "train.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    def once(home, words, after: float | None = None, file: tuple[int, bool] | None = None, **environment) -> int:
        """Killed `after` seconds, or at the file of that number to be named: before that, or behind."""
        told = {"home": str(home), "words": words, "file": file, "environment": environment}
        server.stdin.write(json.dumps(told) + "\n")
        server.stdin.flush()
        pid = int(server.stdout.readline())
        clock = threading.Timer(after, os.kill, (pid, signal.SIGKILL)) if after else None
        if clock:
            clock.start()
        status = int(server.stdout.readline())
        if clock:
            clock.cancel()
        return status

    yield once
    server.kill()


def again(home) -> list[str]:
    """What a user gives who finds the run dead."""
    return ["resume=run"] if (home / "run" / ".hydra" / "overrides.yaml").is_file() else WORDS


def finished(home) -> bool:
    """Whether the run's record says so, as it does of one killed behind its very last file."""
    return read_json(home / "run" / "run.json").get("state") == "finished"


@pytest.mark.slow
def test_killed_twenty_times_and_never_lost(start, tmp_path):
    """By the clock, and at every kind of file that appears: configs, caches, records, checkpoints, samples, the result."""
    whole = tmp_path / "whole"
    whole.mkdir()
    began = time.monotonic()
    assert start(whole, WORDS) == 0, (whole / "log.txt").read_text()
    took, chance = time.monotonic() - began, random.Random(0)
    kills, number = 0, itertools.count()
    elsewhere = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(tmp_path)  # another file system
    while kills < KILLS:
        home = tmp_path / f"run{next(number)}"
        home.mkdir()
        for turn in range(5):
            by_file = turn % 2
            how = (
                {"file": (chance.randint(1, 12), chance.random() < 0.5)}
                if by_file
                else {"after": chance.uniform(0.05, 0.7) * took}
            )
            status = start(home, again(home), **how, TMPDIR=elsewhere if kills % 2 else str(tmp_path))
            assert status in (0, -signal.SIGKILL), (home / "log.txt").read_text()
            kills += status != 0
            took *= 0.8 if status == 0 and not by_file else 1
            if finished(home):
                break
            assert status, (home / "log.txt").read_text()
        else:
            assert start(home, again(home)) == 0, (home / "log.txt").read_text()
        assert finished(home) and (home / "run" / "samples.png").is_file()
        same(whole / "run", home / "run")
        left = [p.name for p in (home / "run").rglob(".*") if p.name != ".hydra"]
        assert not left, left
