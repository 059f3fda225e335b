"""A run that does not fit on its disk is refused before the first step; a full disk destroys no file."""

import shutil
import subprocess
import sys
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
from conftest import ROOT

from sdft.runs.checkpoint_file import find_damage
from sdft.training.disk_space import check_disk_space, estimate_checkpoint_size, find_existing_parent

GB = 2**30


@pytest.fixture
def set_free_space(monkeypatch):
    """A function that sets the free disk space."""

    def set_size(size: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))

    return set_size


def test_a_run_that_does_not_fit_is_refused_in_one_line(set_free_space, tmp_path):
    set_free_space(3 * GB)
    training = SimpleNamespace(save_every=100, checkpoints_total_limit=3)
    with pytest.raises(
        ValueError, match=r"run: .* 12\.4 GB .*, 3\.0 GB .*; use checkpoints_total_limit=2 .*hydra\.run\.dir"
    ):
        check_disk_space(tmp_path / "run", int(12.4 * GB), 0, training)
    with pytest.raises(ValueError, match=r" 4\.0 GB .*, 3\.0 GB .*; use cache=ram, or another hydra\.run\.dir"):
        check_disk_space(tmp_path / "run", 2 * GB, 2 * GB, SimpleNamespace(save_every=0, checkpoints_total_limit=1))
    check_disk_space(tmp_path / "run", 2 * GB, GB // 2, training)


def test_a_run_is_refused_before_caches_and_checkpoints_are_written(run, set_free_space, tmp_path, capsys):
    set_free_space(2**20)
    with pytest.raises(ValueError, match=r"run: .* MB .*, 1 MB "):
        run("steps=4", "save_every=1", "checkpoints_total_limit=4")
    assert "cache" not in capsys.readouterr().out
    assert not [path for path in tmp_path.glob("outputs/**/*") if path.is_file() and "scans" not in path.parts]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".hydra"]


@pytest.mark.parametrize("method", [["ema=0.9"], ["method=sft"]])
@pytest.mark.slow
def test_checkpoints_are_as_large_as_expected(run, method):
    module, folder = run("steps=2", "save_every=1", "checkpoints_total_limit=2", *method)
    for path in (folder / "checkpoints").glob("*.ckpt"):
        with ZipFile(path) as archive:  # names are a large part of a tiny checkpoint
            tensors = sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)
        assert estimate_checkpoint_size(module, "ema=0.9" in method) == pytest.approx(tensors, rel=0.01)


def test_the_nearest_existing_parent_is_checked(tmp_path):
    assert find_existing_parent(tmp_path / "a" / "b") == tmp_path


@pytest.fixture
def limit_file_size(monkeypatch):
    """A function that limits the size of the files that this process can write, until the test ends."""
    resource = pytest.importorskip("resource")
    import signal

    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_earlier_files_intact(run, limit_file_size, monkeypatch, tmp_path):
    from sdft.training.module import DiffusionModule

    original = DiffusionModule.training_step

    def fill_up(self, batch, number):
        if self.global_step == 2:
            limit_file_size(100_000)
        return original(self, batch, number)

    monkeypatch.setattr(DiffusionModule, "training_step", fill_up)
    with pytest.raises(ValueError, match=r"run: the disk is full at step 3; .*\.ckpt is saved") as error:
        run("steps=5", "save_every=1", "checkpoints_total_limit=9")
    assert f"resume={tmp_path / 'run'}" in str(error.value)
    files = sorted((tmp_path / "run" / "checkpoints").iterdir())  # the second was being written when the disk filled up
    names = ["step-000001.ckpt", "step-000002.ckpt"][: len(files)]
    assert files and [file.name for file in files] == names and not any(map(find_damage, files))


def test_an_unwritable_folder_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, str(ROOT / "train.py"), "logger=none", "steps=1", "hydra.run.dir=file/run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and line.startswith("error: ") and "file/run" in line
