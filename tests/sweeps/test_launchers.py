"""Sweeps on SLURM and Ray."""

import csv
import os
import stat
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sdft.sweeps.launchers.ray_cluster import RayJob
from sdft.sweeps.launchers.slurm import Submitit, SubmittedJob
from sdft.sweeps.sweep import run_sweep

SBATCH = """#!{python}
import os, subprocess, sys
number = sum(1 for _ in open("queue.txt")) + 1 if os.path.exists("queue.txt") else 1
script = sys.argv[-1]
with open("queue.txt", "a") as queue:
    print(script, file=queue)
with open("script.txt", "w") as copy:
    copy.write(open(script).read())
options = dict(l[8:].strip().lstrip("-").partition("=")[::2] for l in open(script) if l.startswith("#SBATCH"))
variables = {{"SLURM_JOB_ID": str(number), "SLURM_JOB_NUM_NODES": options["nodes"]}}
variables["SLURM_NTASKS"] = options["ntasks-per-node"]
variables |= dict.fromkeys(("SLURM_JOB_NODELIST", "SLURM_NODELIST"), "localhost")
quiet = {{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}}
subprocess.Popen(["bash", "script.txt"], env=os.environ | variables, start_new_session=True, **quiet)
print("Submitted batch job", number)
"""
SRUN = """#!{python}
import os, subprocess, sys
start = sys.argv.index(sys.executable)
count = int(os.environ["SLURM_NTASKS"])
environment = os.environ | {{"SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NUM_NODES": "1"}}
numbers = [{{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}} for i in range(count)]
tasks = [subprocess.Popen(sys.argv[start:], env=environment | number) for number in numbers]
sys.exit(max(task.wait() for task in tasks))
"""
SACCT = """#!{python}
print("JobID|State|NodeList")
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A fake cluster: `sbatch` and `srun` start the requested tasks on this machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": SACCT}.items():
        (folder / name).write_text(text.format(python=sys.executable))
        (folder / name).chmod(0o755 | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def read_ranks(folder) -> list[str]:
    (table,) = folder.glob("multirun/lora/*/table.csv")
    return [row["rank"] for row in csv.DictReader(table.open())]


@pytest.mark.parametrize("launcher", [["submitit", "launcher.cluster=local"], ["ray"]], ids=lambda value: value[0])
@pytest.mark.slow
def test_a_sweep_runs_on_every_launcher(fake_train_script, tmp_path, monkeypatch, launcher):
    monkeypatch.setenv("BAD", "2")
    overrides = ["rank=1,2,4", "seed=0", "n_jobs=2", "accelerator=cpu", f"launcher={launcher[0]}", *launcher[1:]]
    assert run_sweep(None, overrides) == 1
    assert len(fake_train_script()) == 3 and read_ranks(tmp_path) == ["1", "4"]
    assert len(list(tmp_path.glob("multirun/lora/*/*/log.txt"))) == 3


@pytest.mark.slow
def test_slurm_jobs_request_their_resources(fake_train_script, slurm, tmp_path):
    overrides = [
        "rank=1,2",
        "seed=0",
        "devices=2",
        "launcher=submitit",
        "launcher.timeout_min=7",
        "launcher.slurm.partition=gpu",
    ]
    assert run_sweep(None, [*overrides, "accelerator=cpu", "launcher.slurm.partition=gpu"]) == 0
    script = (tmp_path / "script.txt").read_text()
    for line in ("--ntasks-per-node=2", "--nodes=1", "--time=7", "--partition=gpu", "--cpus-per-task=8", "--mem=64GB"):
        assert f"#SBATCH {line}" in script
    assert "gpus" not in script
    deadline = time.monotonic() + 60
    while len(fake_train_script()) < 4 and time.monotonic() < deadline:  # a job counts as finished after its first task
        time.sleep(0.05)
    assert fake_train_script() == ["1 0 None"] * 2 + ["2 0 None"] * 2  # two tasks of each job
    assert read_ranks(tmp_path) == ["1", "2"]


@pytest.mark.parametrize("devices", ["auto", 1, 4])
def test_the_memory_of_a_slurm_job_grows_with_its_devices(slurm, tmp_path, monkeypatch, devices):
    submitted = {}
    monkeypatch.setattr("submitit.AutoExecutor.update_parameters", lambda _, **parameters: submitted.update(parameters))
    cfg = SimpleNamespace(num_nodes=2, devices=devices, accelerator="gpu")
    Submitit(memory_gb=20).prepare(tmp_path, [cfg])
    count = 1 if devices == "auto" else devices
    assert (submitted["mem_gb"], submitted["tasks_per_node"], submitted["gpus_per_node"]) == (20 * count, count, count)


def test_unavailable_launchers_give_one_line_errors(fake_train_script, monkeypatch):
    with pytest.raises(ValueError, match="launcher.cluster=slurm: "):
        run_sweep(None, ["rank=1,2", "launcher=submitit"])
    with pytest.raises(ValueError, match="launcher=submitit: .*num_nodes, devices"):
        run_sweep(None, ["devices=1,2", "accelerator=cpu", "launcher=submitit", "launcher.cluster=local"])
    monkeypatch.setattr("sdft.sweeps.launchers.remote_command.find_spec", lambda package: None)
    with pytest.raises(ValueError, match="launcher=ray: .*pip install ray"):
        run_sweep(None, ["rank=1,2", "launcher=ray"])


def test_failures_without_a_message_are_reported(monkeypatch, capsys):
    class RayError(Exception):
        pass

    def fail(*_, **__):
        raise RayError

    ray = SimpleNamespace(wait=lambda *_, **__: ([1], []), get=fail, exceptions=SimpleNamespace(RayError=RayError))
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert RayJob(None).exit_code() == 1
    task = SimpleNamespace(exception=lambda: RayError())
    submitted = SimpleNamespace(task=lambda number: task, done=lambda: True)
    assert SubmittedJob(submitted, SimpleNamespace(is_finished=lambda: False), 1).exit_code() == 1
    assert capsys.readouterr().out.count("RayError") >= 2
    executor = SimpleNamespace(folder=Path(), submit=fail)
    launcher = Submitit(cluster="local")
    launcher.executor = executor
    monkeypatch.setattr("sdft.sweeps.launchers.slurm.build_remote_command", lambda job: None)
    with pytest.raises(ValueError, match="launcher=submitit: RayError; see"):
        launcher.start(SimpleNamespace(folder=Path("job")))
