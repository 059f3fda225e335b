"""A checkpoint is whole or not there; a changed byte is noticed; code in it is not run."""

import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch

from sdft.runs.checkpoint_file import (
    find_damage,
    find_latest_checkpoint,
    format_checkpoint_name,
    read_checkpoint,
    write_checkpoint,
)
from sdft.training.async_checkpoint import AsyncCheckpointIO
from sdft.training.settings import TrainingSettings

STATE = {"global_step": 3, "state_dict": {"w": torch.arange(4000.0)}, "plain": [1, {"a": None}]}


def test_what_is_written_is_read_by_us_and_by_torch(tmp_path):
    write_checkpoint(STATE, tmp_path / "a.ckpt")
    for found in (read_checkpoint(tmp_path / "a.ckpt"), torch.load(tmp_path / "a.ckpt", weights_only=True, mmap=True)):
        assert torch.equal(found["state_dict"]["w"], STATE["state_dict"]["w"]) and found["plain"] == STATE["plain"]
    assert zipfile.ZipFile(tmp_path / "a.ckpt").comment.startswith(b"sdft step=000000000003 sha256=")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    torch.save(STATE, tmp_path / "b.ckpt")  # of others, without a checksum
    assert find_damage(tmp_path / "b.ckpt") is None and read_checkpoint(tmp_path / "b.ckpt")["global_step"] == 3


def test_the_newest_ones_are_kept_and_what_goes_wrong_in_the_background_is_told(tmp_path):
    files = AsyncCheckpointIO(keep=2)
    for step in (2, 4, 6):
        weights = torch.full((3,), float(step))
        files.save_checkpoint({"global_step": step, "w": weights}, tmp_path / format_checkpoint_name(step))
        weights.zero_()  # as training goes on
    files.save_checkpoint({"global_step": 6}, tmp_path / "last.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "step-000004.ckpt", "step-000006.ckpt"]
    assert read_checkpoint(tmp_path / "step-000004.ckpt")["w"].tolist() == [4.0] * 3
    files.save_checkpoint(
        {"global_step": 3}, tmp_path / format_checkpoint_name(3)
    )  # gone back to: later ones are still to be overwritten
    files.wait()
    assert sorted(p.name for p in tmp_path.glob("step*")) == [
        "step-000003.ckpt",
        "step-000004.ckpt",
        "step-000006.ckpt",
    ]
    (tmp_path / "file").touch()
    files.save_checkpoint({"global_step": 8}, tmp_path / "file" / format_checkpoint_name(8))
    with pytest.raises(OSError):
        files.save_checkpoint({"global_step": 10}, tmp_path / format_checkpoint_name(10))


@pytest.mark.parametrize("where", [0, 30, 5000, -100, -60, -1])
def test_a_changed_byte_is_noticed(tmp_path, where):
    """torch.load would take most of them for weights."""
    write_checkpoint(STATE, tmp_path / "a.ckpt")
    content = bytearray((tmp_path / "a.ckpt").read_bytes())
    content[where] ^= 1
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.ckpt: its checksum does not fit its content"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_the_newest_whole_one_is_gone_on_from(tmp_path, capsys):
    """By its step: the clock may have been set back."""
    place = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        write_checkpoint(STATE | {"global_step": step}, place / f"step-00000{step}.ckpt")
        os.utime(place / f"step-00000{step}.ckpt", (9 - step, 9 - step))
    content = (place / "step-000003.ckpt").read_bytes()
    (place / "step-000003.ckpt").write_bytes(content[: len(content) // 2])
    os.utime(place / "step-000003.ckpt", (9, 9))
    assert (
        find_latest_checkpoint(place).name == "step-000002.ckpt"
        and TrainingSettings(steps=9, resume=str(tmp_path)).find_checkpoint().name == "step-000002.ckpt"
    )
    assert "step-000003.ckpt: it is cut off, or no checkpoint; going back to the one before" in capsys.readouterr().out
    (place / "last.ckpt").write_bytes(content[:-200])
    (place / "step-000003.ckpt").write_bytes(content)
    assert (
        find_latest_checkpoint(place).name == "step-000003.ckpt"
        and "last.ckpt: it is cut off" in capsys.readouterr().out
    )
    (place / "step-000003.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"resume=.*step-000003\.ckpt: it is cut off, or no checkpoint; give another"):
        TrainingSettings(steps=9, resume=str(place / "step-000003.ckpt")).find_checkpoint()


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "bomb": Bomb()}, "bomb.ckpt")
    with pytest.raises(ValueError, match=r"bomb\.ckpt: holds more than tensors and plain values"):
        read_checkpoint(tmp_path / "bomb.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"plain\.ckpt: it is cut off, or no checkpoint"):
        read_checkpoint(tmp_path / "plain.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_the_earlier_file(tmp_path):
    write_checkpoint(STATE, tmp_path / "a.ckpt")
    before, handler = (tmp_path / "a.ckpt").read_bytes(), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            write_checkpoint(STATE | {"global_step": 4}, tmp_path / "a.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "a.ckpt").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_file(tmp_path):
    program = """
import itertools, torch
from pathlib import Path
from sdft.runs.checkpoint_file import write
for step in itertools.count():
    write({"global_step": step, "w": torch.full((1_000_000,), float(step))}, Path("last.ckpt"))
    print(step, flush=True)
"""
    for moment in range(3):
        writer = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        writer.stdout.readline()
        time.sleep(0.017 * moment)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        found = read_checkpoint(tmp_path / "last.ckpt")
        assert found["w"].unique().tolist() == [found["global_step"]]
