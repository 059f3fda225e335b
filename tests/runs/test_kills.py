"""A run killed at any moment resumes to the weights, metrics and samples of an uninterrupted one."""

import itertools
import os
import random
import signal
import subprocess
import time
from functools import partial

import pytest
from conftest import QUICK_OVERRIDES
from forked import ForkedProgram, die_at_rename
from test_resume import assert_same_results

from sdft.runs.files import read_json

OVERRIDES = [
    *QUICK_OVERRIDES, "steps=12", "save_every=2", "checkpoints_total_limit=2", "sample_every=4", "validate_every=5",
    "log_every=3", "ema=0.9", "rank=2", "data.per_digit=2", "data.digits=[0,1,2]", "hydra.run.dir=run",
]  # fmt: skip
KILLS = 20


def run_until_killed(
    home, overrides, after: float | None = None, file: tuple[str, int, bool] | None = None, **environment
) -> int:
    """Kill it `after` seconds, or at a rename: `file` is (part of the new name, which of them, before it or after)."""
    program = ForkedProgram(*overrides, cwd=home, prepare=file and partial(die_at_rename, *file), **environment)
    try:
        return program.wait(after or 300)
    except subprocess.TimeoutExpired:
        program.send_signal(signal.SIGKILL)
        return program.wait()
    finally:
        with open(home / "log.txt", "a") as log:
            log.write(program.read("out") + program.read("err"))


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
def test_a_run_killed_at_any_stage_resumes_to_the_same_results(tmp_path):
    uninterrupted = tmp_path / "uninterrupted"
    uninterrupted.mkdir()
    assert run_until_killed(uninterrupted, OVERRIDES) == 0, (uninterrupted / "log.txt").read_text()
    for stage, point in KILL_POINTS.items():
        home = tmp_path / stage
        home.mkdir()
        assert run_until_killed(home, OVERRIDES, file=point) == -signal.SIGKILL, (home / "log.txt").read_text()
        assert run_until_killed(home, get_restart_arguments(home)) == 0, (home / "log.txt").read_text()
        assert is_finished(home) and (home / "run" / "samples.png").is_file()
        assert_same_results(uninterrupted / "run", home / "run")


@pytest.mark.soak
def test_twenty_killed_runs_resume_to_the_same_results(tmp_path):
    """Kill by time, and at the writes of configs, caches, records, checkpoints, samples and results."""
    uninterrupted = tmp_path / "uninterrupted"
    uninterrupted.mkdir()
    started = time.monotonic()
    assert run_until_killed(uninterrupted, OVERRIDES) == 0, (uninterrupted / "log.txt").read_text()
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
            status = run_until_killed(
                home, get_restart_arguments(home), **kill, TMPDIR=other_file_system if kills % 2 else str(tmp_path)
            )
            assert status in (0, -signal.SIGKILL), (home / "log.txt").read_text()
            kills += status != 0
            duration *= 0.8 if status == 0 and not by_file else 1
            if is_finished(home):
                break
            assert status, (home / "log.txt").read_text()
        else:
            assert run_until_killed(home, get_restart_arguments(home)) == 0, (home / "log.txt").read_text()
        assert is_finished(home) and (home / "run" / "samples.png").is_file()
        assert_same_results(uninterrupted / "run", home / "run")
        leftovers = [p.name for p in (home / "run").rglob(".*") if p.name != ".hydra"]
        assert not leftovers, leftovers
