"""A run that cannot fit on its disk is refused before the first step; one whose disk fills up loses nothing."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

from sdft.runs.checkpoint_file import find_damage
from sdft.training.disk_space import check_disk_space, estimate_checkpoint_size, find_existing_parent

GB = 2**30


@pytest.fixture
def free(monkeypatch):
    """A function that says how much is free."""

    def say(size: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=size))

    return say


def test_what_does_not_fit_is_refused_in_one_line(free, tmp_path):
    free(3 * GB)
    loop = SimpleNamespace(save_every=100, checkpoints_total_limit=3)
    with pytest.raises(
        ValueError,
        match=r"run: the run writes about 12\.4 GB, 3\.0 GB are free; give checkpoints_total_limit=2 or fewer, or ",
    ):
        check_disk_space(tmp_path / "run", int(12.4 * GB), 0, loop)
    with pytest.raises(
        ValueError, match=r"about 4\.0 GB, 3\.0 GB are free; give cache=ram, or another hydra\.run\.dir"
    ):
        check_disk_space(tmp_path / "run", 2 * GB, 2 * GB, SimpleNamespace(save_every=0, checkpoints_total_limit=1))
    check_disk_space(tmp_path / "run", 2 * GB, GB // 2, loop)


def test_a_run_is_refused_before_anything_is_computed_or_written(run, free, tmp_path, capsys):
    free(2**20)
    with pytest.raises(ValueError, match="the run writes about .* MB, 1 MB are free"):
        run("steps=4", "save_every=1", "checkpoints_total_limit=4")
    assert "cache" not in capsys.readouterr().out and not (tmp_path / "outputs").exists()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".hydra"]


@pytest.mark.parametrize("method", [["ema=0.9"], ["method=sft"]])
def test_checkpoints_are_as_large_as_expected(run, method):
    module, folder = run("steps=2", "save_every=1", "checkpoints_total_limit=2", *method)
    for path in (folder / "checkpoints").glob("*.ckpt"):
        expected = estimate_checkpoint_size(module, "ema=0.9" in method)
        assert expected == pytest.approx(
            path.stat().st_size, rel=0.15
        )  # the tiny model's names take as much as its weights


def test_the_nearest_folder_that_is_there_is_looked_at(tmp_path):
    assert find_existing_parent(tmp_path / "a" / "b") == tmp_path


@pytest.fixture
def full(monkeypatch):
    """A function after which this process writes no file over so many bytes, until the test ends."""
    resource = pytest.importorskip("resource")
    import signal

    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_fills_up_in_a_run_leaves_earlier_files_whole(run, full, monkeypatch, tmp_path):
    from sdft.training.module import DiffusionModule

    step = DiffusionModule.training_step

    def fill_up(self, batch, number):
        if self.global_step == 2:
            full(100_000)
        return step(self, batch, number)

    monkeypatch.setattr(DiffusionModule, "training_step", fill_up)
    with pytest.raises(
        ValueError, match=r"run: the disk is full at step 3; earlier files are whole; .*\.ckpt is saved"
    ) as told:
        run("steps=5", "save_every=1", "checkpoints_total_limit=9")
    assert f"go on with resume={tmp_path / 'run'}" in str(told.value)
    files = sorted((tmp_path / "run" / "checkpoints").iterdir())  # the second was being written when it happened
    names = ["step-000001.ckpt", "step-000002.ckpt"][: len(files)]
    assert files and [file.name for file in files] == names and not any(map(find_damage, files))


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("")
    command = [sys.executable, str(ROOT / "train.py"), "logger=none", "steps=1", "hydra.run.dir=taken/run"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    (line,) = ended.stderr.strip().splitlines()
    assert ended.returncode == 1 and line.startswith("error: ") and "taken/run" in line
