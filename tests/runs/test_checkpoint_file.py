"""A checkpoint is complete or absent; corruption is detected; code in it is not executed."""

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

from sdft.runs import checkpoint_file
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


def test_torch_reads_the_checkpoints_too(tmp_path):
    write_checkpoint(STATE, tmp_path / "a.ckpt")
    for checkpoint in (
        read_checkpoint(tmp_path / "a.ckpt"),
        torch.load(tmp_path / "a.ckpt", weights_only=True, mmap=True),
    ):
        assert (
            torch.equal(checkpoint["state_dict"]["w"], STATE["state_dict"]["w"])
            and checkpoint["plain"] == STATE["plain"]
        )
    assert zipfile.ZipFile(tmp_path / "a.ckpt").comment.startswith(b"sdft format=01 step=000000000003 sha256=")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize(("old", "new"), [(b"format=01 ", b""), (b"format=01", b"format=02")])
def test_a_checkpoint_of_another_format_version_is_refused(tmp_path, old, new):
    write_checkpoint(STATE, tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes().replace(old, new))
    for read in (read_checkpoint, find_damage, lambda file: find_latest_checkpoint(file.parent)):
        with pytest.raises(ValueError, match=r"a\.ckpt: has .*format version.*reads format version 1"):
            read(tmp_path / "a.ckpt")


@pytest.mark.parametrize("content", [{}, [1], {"global_step": "3"}, {"global_step": 3, "state_dict": [1]}])
def test_a_checkpoint_with_missing_or_mistyped_entries_is_named(tmp_path, content):
    torch.save(content, tmp_path / "a.ckpt")
    add_checksum(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"^[^\n]*a\.ckpt: [^\n]*$"):
        read_checkpoint(tmp_path / "a.ckpt")


def add_checksum(path):
    """Complete the checkpoint that someone has edited."""
    size = path.stat().st_size
    comment = checkpoint_file.COMMENT.format(3, checkpoint_file.compute_digest(path, size - 2, 3)).encode()
    path.write_bytes(path.read_bytes()[:-2] + len(comment).to_bytes(2, "little") + comment)


def test_old_checkpoints_are_pruned_and_background_errors_are_raised(tmp_path):
    writer = AsyncCheckpointIO(total_limit=2)
    for step in (2, 4, 6):
        weights = torch.full((3,), float(step))
        writer.save_checkpoint({"global_step": step, "w": weights}, tmp_path / format_checkpoint_name(step))
        weights.zero_()  # the next step
    writer.save_checkpoint({"global_step": 6}, tmp_path / "last.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "step-000004.ckpt", "step-000006.ckpt"]
    assert read_checkpoint(tmp_path / "step-000004.ckpt")["w"].tolist() == [4.0] * 3
    writer.save_checkpoint(
        {"global_step": 3}, tmp_path / format_checkpoint_name(3)
    )  # rewound: later checkpoints will be overwritten
    writer.wait()
    assert sorted(p.name for p in tmp_path.glob("step*")) == [
        "step-000003.ckpt",
        "step-000004.ckpt",
        "step-000006.ckpt",
    ]
    (tmp_path / "file").touch()
    writer.save_checkpoint({"global_step": 8}, tmp_path / "file" / format_checkpoint_name(8))
    with pytest.raises(OSError):
        writer.save_checkpoint({"global_step": 10}, tmp_path / format_checkpoint_name(10))


def test_a_missing_checksum_or_bytes_after_it_are_damage(tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint(STATE, path)
    content = path.read_bytes()
    torch.save(STATE, tmp_path / "other.ckpt")
    for damaged in (content + b"\0", content + content[-1:], content[:-1], (tmp_path / "other.ckpt").read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.ckpt: .*(no checksum|truncated)"):
            read_checkpoint(path)
        assert find_latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("position", [0, 30, 5000, -100, -75, -60, -1])
def test_a_changed_byte_is_detected(tmp_path, position):
    """torch.load would accept most of them."""
    write_checkpoint(STATE, tmp_path / "a.ckpt")
    content = bytearray((tmp_path / "a.ckpt").read_bytes())
    content[position] ^= 1
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.ckpt: .*checksum"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_resume_uses_the_latest_undamaged_checkpoint(tmp_path, capsys):
    """By step: the clock may have been set back."""
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        write_checkpoint(STATE | {"global_step": step}, folder / f"step-00000{step}.ckpt")
        os.utime(folder / f"step-00000{step}.ckpt", (9 - step, 9 - step))
    content = (folder / "step-000003.ckpt").read_bytes()
    (folder / "step-000003.ckpt").write_bytes(content[: len(content) // 2])
    os.utime(folder / "step-000003.ckpt", (9, 9))
    assert (
        find_latest_checkpoint(folder).name == "step-000002.ckpt"
        and TrainingSettings(steps=9, resume=str(tmp_path)).find_checkpoint().name == "step-000002.ckpt"
    )
    assert "step-000003.ckpt: truncated" in capsys.readouterr().out
    (folder / "last.ckpt").write_bytes(content[:-200])
    (folder / "step-000003.ckpt").write_bytes(content)
    assert (
        find_latest_checkpoint(folder).name == "step-000003.ckpt" and "last.ckpt: truncated" in capsys.readouterr().out
    )
    (folder / "step-000003.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"resume=.*step-000003\.ckpt: truncated"):
        TrainingSettings(steps=9, resume=str(folder / "step-000003.ckpt")).find_checkpoint()


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_code_in_a_checkpoint_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint({"global_step": 0, "payload": Payload()}, tmp_path / "payload.ckpt")
    with pytest.raises(ValueError, match=r"payload\.ckpt: .*tensors and plain values"):
        read_checkpoint(tmp_path / "payload.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=r"plain\.ckpt: .*not a checkpoint"):
        read_checkpoint(tmp_path / "plain.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_preserves_the_existing_file(tmp_path):
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


@pytest.mark.slow
def test_a_kill_during_a_save_leaves_a_complete_file(tmp_path):
    program = """
import itertools, torch
from pathlib import Path
from sdft.runs.checkpoint_file import write_checkpoint
for step in itertools.count():
    write_checkpoint({"global_step": step, "w": torch.full((1_000_000,), float(step))}, Path("last.ckpt"))
    print(step, flush=True)
"""
    for moment in range(3):
        process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(0.017 * moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        checkpoint = read_checkpoint(tmp_path / "last.ckpt")
        assert checkpoint["w"].unique().tolist() == [checkpoint["global_step"]]
