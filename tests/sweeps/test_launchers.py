"""The same sweep on a SLURM cluster and on a Ray cluster."""

import csv
import os
import stat
import sys
import time

import pytest

from sdft.sweeps.sweep import run_sweep

SBATCH = """#!{python}
import os, subprocess, sys
number = sum(1 for _ in open("queue.txt")) + 1 if os.path.exists("queue.txt") else 1
script = sys.argv[-1]
with open("queue.txt", "a") as queue:
    print(script, file=queue)
with open("script.txt", "w") as copy:
    copy.write(open(script).read())
words = dict(l[8:].strip().lstrip("-").partition("=")[::2] for l in open(script) if l.startswith("#SBATCH"))
told = {{"SLURM_JOB_ID": str(number), "SLURM_JOB_NUM_NODES": words["nodes"], "SLURM_NTASKS": words["ntasks-per-node"]}}
told |= dict.fromkeys(("SLURM_JOB_NODELIST", "SLURM_NODELIST"), "localhost")
quiet = {{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}}
subprocess.Popen(["bash", "script.txt"], env=os.environ | told, start_new_session=True, **quiet)
print("Submitted batch job", number)
"""
SRUN = """#!{python}
import os, subprocess, sys
start = sys.argv.index(sys.executable)
count = int(os.environ["SLURM_NTASKS"])
told = os.environ | {{"SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NUM_NODES": "1"}}
numbers = [{{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}} for i in range(count)]
tasks = [subprocess.Popen(sys.argv[start:], env=told | number) for number in numbers]
sys.exit(max(task.wait() for task in tasks))
"""
SACCT = """#!{python}
print("JobID|State|NodeList")
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A cluster of this machine: `sbatch` and `srun` that start the tasks they are asked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": SACCT}.items():
        (folder / name).write_text(text.format(python=sys.executable))
        (folder / name).chmod(0o755 | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def ranks(folder) -> list[str]:
    (table,) = folder.glob("multirun/lora/*/table.csv")
    return [row["rank"] for row in csv.DictReader(table.open())]


@pytest.mark.parametrize("words", [["submitit", "launcher.cluster=local"], ["ray"]], ids=lambda words: words[0])
def test_a_sweep_runs_on_every_launcher(fake_train_script, tmp_path, monkeypatch, words):
    monkeypatch.setenv("BAD", "2")
    given = ["rank=1,2,4", "seed=0", "n_jobs=2", "accelerator=cpu", f"launcher={words[0]}", *words[1:]]
    assert run_sweep(None, given) == 1
    assert len(fake_train_script()) == 3 and ranks(tmp_path) == ["1", "4"]
    assert len(list(tmp_path.glob("multirun/lora/*/*/log.txt"))) == 3


def test_slurm_is_asked_for_what_a_job_needs(fake_train_script, slurm, tmp_path):
    given = [
        "rank=1,2",
        "seed=0",
        "devices=2",
        "launcher=submitit",
        "launcher.timeout_min=7",
        "launcher.slurm.partition=gpu",
    ]
    assert run_sweep(None, [*given, "accelerator=cpu", "launcher.slurm.partition=gpu"]) == 0
    told = (tmp_path / "script.txt").read_text()
    for line in ("--ntasks-per-node=2", "--nodes=1", "--time=7", "--partition=gpu", "--cpus-per-task=8", "--mem=32GB"):
        assert f"#SBATCH {line}" in told
    assert "gpus" not in told
    deadline = time.monotonic() + 60
    while (
        len(fake_train_script()) < 4 and time.monotonic() < deadline
    ):  # a job is finished once its first task has said so
        time.sleep(0.05)
    assert fake_train_script() == ["1 0 None"] * 2 + ["2 0 None"] * 2  # two tasks of each job
    assert ranks(tmp_path) == ["1", "2"]


def test_what_cannot_be_launched_is_refused_in_one_line(fake_train_script, monkeypatch):
    with pytest.raises(ValueError, match="launcher.cluster=slurm: .*; choose slurm or local"):
        run_sweep(None, ["rank=1,2", "launcher=submitit"])
    with pytest.raises(ValueError, match="give all jobs the same num_nodes, devices and accelerator"):
        run_sweep(None, ["devices=1,2", "accelerator=cpu", "launcher=submitit", "launcher.cluster=local"])
    monkeypatch.setattr("sdft.sweeps.launchers.remote_command.find_spec", lambda package: None)
    with pytest.raises(ValueError, match="launcher=ray: not installed; pip install ray"):
        run_sweep(None, ["rank=1,2", "launcher=ray"])
