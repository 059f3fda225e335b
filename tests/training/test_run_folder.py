"""A start touches only files of its own, in a folder that it has to itself."""

import json
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from conftest import QUICK_OVERRIDES, ROOT
from forked import ForkedProgram, run_forked

from sdft.cli.output_folders import MissingFolders, remove_empty_folders
from sdft.runs.metadata import mark_failed
from sdft.runs.resume import OVERRIDES_FILE, read_overrides
from sdft.training.run_folder import RUN_FILES, open_run_folder


@contextmanager
def another_run(folder):
    """Another process that holds the folder's lock."""
    program = (
        f"from pathlib import Path; from sdft.runs.lock import Lock; lock = Lock(Path({str(folder)!r}), 'a run'); "
    )
    command = [sys.executable, "-c", program + "print(flush=True); input()"]
    other = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    yield
    other.send_signal(signal.SIGKILL)
    other.communicate()


def snapshot(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_refused_start_leaves_the_files_of_the_running_one(tmp_path):
    with pytest.raises(RuntimeError), open_run_folder(tmp_path, ["seed=1"]) as record:
        record.metadata["state"] = "running"
        record.write()
        raise RuntimeError
    (tmp_path / "run.json").write_text('{"format": 1, "state": "running"}')
    with another_run(tmp_path):
        before = snapshot(tmp_path)
        with pytest.raises(ValueError, match="in use by a run, process"), open_run_folder(tmp_path, ["seed=2"]):
            pass
        assert mark_failed(tmp_path, 1) == 1 and snapshot(tmp_path) == before
    assert mark_failed(tmp_path, 1) == 1 and json.loads((tmp_path / "run.json").read_text())["state"] == "failed"


def test_overrides_of_a_start_that_fails_early_are_replaced_by_the_old_ones(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError), open_run_folder(folder, ["rank=0"]):
        assert read_overrides(folder) == ["rank=0"]
        raise RuntimeError
    assert not list(folder.iterdir())
    (folder / OVERRIDES_FILE).parent.mkdir()
    (folder / OVERRIDES_FILE).write_text("- 'a: 1'\n")  # of a run that was killed before it started
    with pytest.raises(RuntimeError), open_run_folder(folder, ["rank=0"]):
        raise RuntimeError
    assert read_overrides(folder) == ["a: 1"]
    with open_run_folder(folder, ["data.caption='a \"ß\", b'", "x=" + "long " * 99]) as record:
        record.metadata["state"] = "finished"
    assert read_overrides(folder) == ["data.caption='a \"ß\", b'", "x=" + "long " * 99]


@pytest.mark.parametrize("name", ["config.yaml", "pipeline", "lock"])
def test_files_of_others_are_refused_rather_than_replaced(name, tmp_path):
    assert name == "lock" or name in RUN_FILES
    (tmp_path / "pipeline").mkdir() if name == "pipeline" else (tmp_path / name).write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=name), open_run_folder(tmp_path):
        pass
    assert snapshot(tmp_path) == before and (tmp_path / name).exists()


def test_other_files_in_the_folder_of_a_run_are_not_removed(tmp_path):
    for name in (".notes.20240101", "photo.jpg", ".config.yaml.0123abcd.partial"):
        (tmp_path / name).touch()
    with open_run_folder(tmp_path):
        assert len(snapshot(tmp_path)) == 5  # and the lock and the overrides
    with open_run_folder(tmp_path):
        assert not (tmp_path / ".config.yaml.0123abcd.partial").exists() and (tmp_path / ".notes.20240101").exists()


def test_only_folders_that_were_missing_are_removed(tmp_path):
    from omegaconf import OmegaConf

    (tmp_path / "mine").mkdir()
    for name, left in {"mine": ["mine"], "mine/a/b": ["mine"], "c/d": ["mine"]}.items():
        MissingFolders().on_run_start(OmegaConf.create({"hydra": {"run": {"dir": str(tmp_path / name)}}}))
        with pytest.raises(RuntimeError), remove_empty_folders():
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            raise RuntimeError
        assert sorted(path.name for path in tmp_path.rglob("*")) == left


@pytest.mark.slow
def test_of_two_starts_in_one_second_one_runs_and_can_be_resumed(tmp_path):
    overrides = [*QUICK_OVERRIDES, "hydra.run.dir=run", "steps=3"]  # the folder has that second's name
    runs = [ForkedProgram(*overrides, f"seed={seed}", cwd=tmp_path) for seed in (1, 2)]
    (refused,) = (number for number, run in enumerate(runs) if run.wait())
    error = runs[refused].read("err")
    assert error.startswith("error: ") and "in use by a run" in error
    assert f"seed={2 - refused}" in read_overrides(tmp_path / "run")
    assert f"- seed={2 - refused}\n" in (tmp_path / "run" / OVERRIDES_FILE).read_text()
    run_forked("resume=run", "steps=4", "allow_config_change=true", cwd=tmp_path)
