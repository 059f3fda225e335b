"""A run killed at any moment resumes to the weights, metrics and samples of an uninterrupted one."""

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
from test_resume import assert_same_results

from sdft.runs.files import read_json

OVERRIDES = [
    *QUICK_OVERRIDES, "steps=12", "save_every=2", "checkpoints_total_limit=2", "sample_every=4", "validate_every=5",
    "log_every=3", "ema=0.9", "rank=2", "data.per_digit=2", "data.digits=[0,1,2]", "hydra.run.dir=run",
]  # fmt: skip
KILLS = 20
SERVER = """
import json, os, runpy, sys
import torch, lightning, diffusers, transformers, peft, lightning.pytorch.loggers, transformers.modeling_layers  # imported once
from diffusers import AutoencoderKL, UNet2DConditionModel, StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer
import sdft.training.training_run
train = sys.argv[1]
replace = os.replace

def die_at(pattern, count, early):
    def replace_and_count(*names):
        nonlocal count
        count -= pattern in str(names[1])
        if count == 0 and early and pattern in str(names[1]):
            os.kill(os.getpid(), 9)
        replace(*names)
        if count == 0 and pattern in str(names[1]):
            os.kill(os.getpid(), 9)
    return replace_and_count

for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if not pid:
        os.chdir(request["home"])
        os.environ |= request["environment"]
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.stdin = open(os.devnull)
        sys.argv = [train, *request["overrides"]]
        if request["file"]:
            os.replace = die_at(*request["file"])
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
    """A function that runs train.py in a forked process with all imports, and returns its exit status."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(ROOT / "train.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    def run_once(
        home, overrides, after: float | None = None, file: tuple[str, int, bool] | None = None, **environment
    ) -> int:
        """Kill it `after` seconds, or at a rename: `file` is (part of the new name, which of them, before it or after)."""
        request = {"home": str(home), "overrides": overrides, "file": file, "environment": environment}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        pid = int(server.stdout.readline())
        timer = threading.Timer(after, os.kill, (pid, signal.SIGKILL)) if after else None
        if timer:
            timer.start()
        status = int(server.stdout.readline())
        if timer:
            timer.cancel()
        return status

    yield run_once
    server.kill()


def get_restart_arguments(home) -> list[str]:
    """What a user runs after the kill."""
    return ["resume=run"] if (home / "run" / ".hydra" / "overrides.yaml").is_file() else OVERRIDES


def is_finished(home) -> bool:
    """Whether the record says so, also of a run killed after its last file."""
    return read_json(home / "run" / "run.json").get("state") == "finished"


KILL_POINTS = {  # part of a file name, which of the writes, and whether it dies before or after the file is in place
    "caching": ("latents", 1, True),
    "sampling": ("samples.png", 2, False),
    "saving": ("step-000006", 1, True),
    "exporting": ("kohya", 1, False),
    "evaluating": ("run.json", 2, False),
}


@pytest.mark.slow
def test_a_run_killed_at_any_stage_resumes_to_the_same_results(start, tmp_path):
    uninterrupted = tmp_path / "uninterrupted"
    uninterrupted.mkdir()
    assert start(uninterrupted, OVERRIDES) == 0, (uninterrupted / "log.txt").read_text()
    for stage, point in KILL_POINTS.items():
        home = tmp_path / stage
        home.mkdir()
        assert start(home, OVERRIDES, file=point) == -signal.SIGKILL, (home / "log.txt").read_text()
        assert start(home, get_restart_arguments(home)) == 0, (home / "log.txt").read_text()
        assert is_finished(home) and (home / "run" / "samples.png").is_file()
        assert_same_results(uninterrupted / "run", home / "run")


@pytest.mark.soak
def test_twenty_killed_runs_resume_to_the_same_results(start, tmp_path):
    """Kill by time, and at the writes of configs, caches, records, checkpoints, samples and results."""
    uninterrupted = tmp_path / "uninterrupted"
    uninterrupted.mkdir()
    started = time.monotonic()
    assert start(uninterrupted, OVERRIDES) == 0, (uninterrupted / "log.txt").read_text()
    duration, rng = time.monotonic() - started, random.Random(0)
    kills, number = 0, itertools.count()
    other_file_system = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(tmp_path)
    while kills < KILLS:
        home = tmp_path / f"run{next(number)}"
        home.mkdir()
        for turn in range(5):
            by_file = turn % 2
            kill = (
                {"file": ("", rng.randint(1, 12), rng.random() < 0.5)}
                if by_file
                else {"after": rng.uniform(0.05, 0.7) * duration}
            )
            status = start(
                home, get_restart_arguments(home), **kill, TMPDIR=other_file_system if kills % 2 else str(tmp_path)
            )
            assert status in (0, -signal.SIGKILL), (home / "log.txt").read_text()
            kills += status != 0
            duration *= 0.8 if status == 0 and not by_file else 1
            if is_finished(home):
                break
            assert status, (home / "log.txt").read_text()
        else:
            assert start(home, get_restart_arguments(home)) == 0, (home / "log.txt").read_text()
        assert is_finished(home) and (home / "run" / "samples.png").is_file()
        assert_same_results(uninterrupted / "run", home / "run")
        leftovers = [p.name for p in (home / "run").rglob(".*") if p.name != ".hydra"]
        assert not leftovers, leftovers
