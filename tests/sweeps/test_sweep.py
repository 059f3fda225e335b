"""Sweeps: expansion into jobs, separate processes, resuming, logs and GPUs."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT
from test_config import compose_checked_config

from sdft.runs.checkpoint_file import write_checkpoint
from sdft.sweeps.grid import build_search_space, expand_grid, parameter_values, search_space_corners, varying_overrides
from sdft.sweeps.jobs import Job
from sdft.sweeps.launchers.local import job_environments
from sdft.sweeps.sweep import SAMPLER_BY_METHOD, SWEEPS_FOLDER, read_sweep_file, run_sweep


@pytest.mark.parametrize("file", sorted(SWEEPS_FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_sweep_file_is_valid_for_wandb_and_its_jobs_compose(file):
    sweep = yaml.safe_load(file.read_text())
    assert sweep["program"] == "train.py" and sweep["method"] in SAMPLER_BY_METHOD
    assert "${args_no_hyphens}" in sweep["command"]
    assert file.read_text().startswith(f"# python train.py sweeps={file.stem} ")
    parameters = read_sweep_file(file.stem)["parameters"]
    if sweep["method"] == "grid":
        jobs = expand_grid(parameter_values(parameters), [])
    else:
        space, fixed = build_search_space(parameters, [])
        jobs = [
            [*fixed, *(f"{key}={value}" for key, value in zip(space, corner, strict=True))]
            for corner in search_space_corners(space)
        ]
    for job in jobs:
        compose_checked_config(*job)


def test_jobs_are_all_combinations_and_overrides_replace_the_file():
    values = {"rank": [4, 8], "seed": [0, 1], "flip": [True]}
    assert expand_grid(values, []) == [[f"rank={r}", f"seed={s}", "flip=true"] for r in (4, 8) for s in (0, 1)]
    assert expand_grid(values, ["seed=7", "lr=1"]) == [[f"rank={r}", "flip=true", "seed=7", "lr=1"] for r in (4, 8)]
    assert varying_overrides(expand_grid(values, ["seed=7"]), 1) == ["rank=8"]


def test_overrides_with_several_values_use_hydras_syntax():
    assert expand_grid({}, ["rank=4,8", "seed=range(2)", "lr=1e-4"]) == [
        [f"rank={r}", f"seed={s}", "lr=1e-4"] for r in (4, 8) for s in (0, 1)
    ]
    assert expand_grid({"rank": [1]}, ["rank=2,3"]) == [["rank=2"], ["rank=3"]]
    assert expand_grid({}, ["prompts=[a cat,a dog]"]) == [["prompts=[a cat,a dog]"]]  # a list is one value


def test_an_invalid_override_is_rejected_before_any_job_runs(fake_train_script, tmp_path):
    with pytest.raises(Exception, match="rank"):
        run_sweep(None, ["rank=4,many"])
    assert not (tmp_path / "ran.txt").exists() and not (tmp_path / "multirun").exists()
    with pytest.raises(ValueError, match="n_jobs=some: "):
        run_sweep(None, ["rank=4,8", "n_jobs=some"])
    with pytest.raises(ValueError, match="n_jobs=0: "):
        run_sweep(None, ["rank=4,8", "n_jobs=0"])
    with pytest.raises(ValueError, match="trials=5: "):
        run_sweep(None, ["rank=4,8", "trials=5"])


@pytest.mark.slow
def test_a_failed_job_does_not_stop_others_and_is_rerun(fake_train_script, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("BAD", "2")
    assert run_sweep(None, ["rank=1,2,4", "seed=0"]) == 1
    printed = capfd.readouterr()
    assert "1 of 3 jobs failed: rank=2" in printed.err and "job        3 of 3: rank=4" in printed.out
    assert len(fake_train_script()) == 3
    (table,) = tmp_path.glob("multirun/lora/*/table.csv")
    assert [row["rank"] for row in csv.DictReader(table.open())] == ["1", "4"]
    monkeypatch.delenv("BAD")
    assert run_sweep(None, ["rank=1,2,4", "seed=0"]) == 0
    assert len(fake_train_script()) == 4 and fake_train_script().count("2 0 None") == 2
    assert "sweep      2 of 3 jobs " in capfd.readouterr().out
    assert [row["rank"] for row in csv.DictReader(table.open())] == ["1", "2", "4"]
    assert run_sweep(None, ["rank=1,2", "seed=0"]) == 0  # other jobs are a new sweep
    assert len(fake_train_script()) == 6 and len(list(tmp_path.glob("multirun/lora/*"))) == 2


@pytest.mark.slow
def test_a_killed_sweep_resumes(fake_train_script, tmp_path):
    program = "import sys; from sdft.sweeps.sweep import run_sweep; "
    program += "sys.exit(run_sweep(None, ['rank=1,2,4', 'seed=0']))"
    killed = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"NAP": "1.5"})
    deadline = time.monotonic() + 60
    while not (tmp_path / "ran.txt").exists() or len(fake_train_script()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    time.sleep(2.5)  # a job that survived its sweep would be finished by now
    assert len(list(tmp_path.glob("multirun/lora/*/*/run.json"))) == 1
    assert run_sweep(None, ["rank=1,2,4", "seed=0"]) == 0
    assert [line.split()[0] for line in fake_train_script()] == ["1", "2", "2", "4"]
    (table,) = tmp_path.glob("multirun/lora/*/table.csv")
    assert [row["rank"] for row in csv.DictReader(table.open())] == ["1", "2", "4"]


@pytest.mark.slow
def test_sigterm_stops_a_sweep_and_its_jobs(fake_train_script, tmp_path):
    program = "import sys\nfrom sdft.cli.signals import SignalListener\nfrom sdft.sweeps.sweep import run_sweep\n"
    program += "with SignalListener():\n    sys.exit(run_sweep(None, ['rank=1,2', 'seed=0']))"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"NAP": "60"})
    deadline = time.monotonic() + 60
    while not (tmp_path / "ran.txt").exists() or not fake_train_script():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 143 and len(fake_train_script()) == 1


def test_concurrent_jobs_split_the_cores_and_write_logs(fake_train_script, tmp_path, monkeypatch):
    monkeypatch.setattr("sdft.sweeps.launchers.local.count_cpu_cores", lambda: 4)
    assert run_sweep(None, ["rank=1,2,4", "seed=0", "n_jobs=2", "accelerator=cpu"]) == 0
    assert [line.split()[2] for line in fake_train_script()] == ["2", "2", "2"]
    assert len(list(tmp_path.glob("multirun/lora/*/*/log.txt"))) == 3


def test_concurrent_jobs_use_separate_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = lambda *ids: {"CUDA_VISIBLE_DEVICES": ",".join(ids)}  # noqa: E731
    assert job_environments(None, [("auto", "auto")]) == [{}]  # devices=auto takes all
    assert job_environments(4, [("auto", "auto")]) == [gpus("0"), gpus("1"), gpus("2"), gpus("3")]
    assert job_environments(None, [(2, "auto")]) == [gpus("0", "1"), gpus("2", "3")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,GPU-a,GPU-b")
    assert job_environments(2, [(2, "auto")]) == [gpus("5", "7"), gpus("GPU-a", "GPU-b")]
    assert job_environments(None, [(1, "cpu")]) == [{}]
    with pytest.raises(ValueError, match="n_jobs=0 devices=8: .* 4 "):
        job_environments(None, [(8, "auto")])
    with pytest.raises(ValueError, match="n_jobs=3 devices=2: .* 4 "):
        job_environments(3, [(2, "auto")])


def test_a_stopped_job_resumes_from_its_checkpoint(tmp_path):
    job = Job(tmp_path / "0", ["rank=4"], "")
    last = job.folder / "checkpoints" / "last.ckpt"
    write_checkpoint({"global_step": 3}, last)
    for state in ("stopped", "running"):  # later killed
        (job.folder / "run.json").write_text(json.dumps({"format": 1, "state": state}))
        assert job.build_command()[2:] == ["rank=4", f"resume={job.folder}", f"hydra.run.dir={job.folder}"]
    last.write_bytes(last.read_bytes()[:-100])
    assert job.build_command()[2:] == ["rank=4", f"hydra.run.dir={job.folder}"]
    assert not list(job.folder.iterdir())


def test_flags_precede_overrides(tmp_path):
    """Overrides after a flag that follows other overrides are lost on the ranks that Lightning starts."""
    command = Job(tmp_path / "0", ["rank=4", "--config-name=train"], "").build_command()
    assert command[2:] == ["--config-name=train", "rank=4", f"hydra.run.dir={tmp_path / '0'}"]


def test_a_running_sweep_is_locked(fake_train_script, tmp_path):
    assert run_sweep(None, ["rank=1", "seed=0"]) == 0
    (folder,) = tmp_path.glob("multirun/lora/*")
    program = f"from pathlib import Path; from sdft.runs.lock import Lock; lock = Lock(Path({str(folder)!r}), 'it'); "
    program += "print(flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(ValueError, match=f"process {other.pid} on "):
        run_sweep(None, ["rank=1", "seed=0"])
    other.communicate()


def test_two_sweeps_of_one_second_do_not_share_a_folder(fake_train_script, tmp_path, monkeypatch):
    monkeypatch.setattr("sdft.sweeps.sweep.time.strftime", lambda _: "now")
    assert run_sweep(None, ["rank=1", "seed=0"]) == 0
    state = (tmp_path / "multirun/lora/now/sweep.json").read_text()
    with pytest.raises(ValueError, match=r"multirun/lora/now: "):
        run_sweep(None, ["rank=2", "seed=0"])
    assert (tmp_path / "multirun/lora/now/sweep.json").read_text() == state
    assert run_sweep(None, ["rank=1", "seed=0"]) == 0


def test_the_readme_lists_every_sweep():
    readme = (ROOT / "README.md").read_text()
    assert all(f"sweeps={file.stem}" in readme for file in SWEEPS_FOLDER.glob("*.yaml"))
