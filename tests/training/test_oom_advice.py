"""Out of memory: the last whole step is saved, and one line says what would help this run."""

import json

import pytest
import torch
from safetensors.torch import load_file

from sdft.models.sampling import Sampling
from sdft.runs.checkpoint_file import read_checkpoint
from sdft.training.module import DiffusionModule
from sdft.training.oom_advice import is_out_of_disk, is_out_of_memory

WORDS = ["batch_size=16", "gradient_accumulation_steps=2", "save_every=0", "ema=0.9"]
ADAPTER = "adapter/pytorch_lora_weights.safetensors"


def test_what_ran_out_is_known_by_what_is_raised():
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError()):
        assert is_out_of_memory(error) and not is_out_of_disk(error)
    for text in ("DefaultCPUAllocator: can't allocate memory: you tried", "MPS backend out of memory (MPS allocated)"):
        assert is_out_of_memory(RuntimeError(text))
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**50)
    assert is_out_of_memory(real.value)
    assert is_out_of_disk(OSError(28, "No space left on device")) and not is_out_of_disk(FileNotFoundError(2, "none"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit")) and not is_out_of_memory(ValueError("out of memory"))


@pytest.fixture
def short(monkeypatch):
    """The memory runs out in a step, in its second micro-batch."""
    step = DiffusionModule.training_step

    def training_step(self, batch, number):
        if self.trainer.global_step == short.at and number % 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, batch, number)

    def short(at: int) -> None:
        short.at = at

    short(-1)
    monkeypatch.setattr(DiffusionModule, "training_step", training_step)
    return short


def test_the_last_whole_step_is_saved_and_gone_on_from(run, short, tmp_path):
    _, whole = run("steps=3", *WORDS, name="whole")
    short(2)
    with pytest.raises(
        ValueError, match="out of memory at step 2 with batch 16 at 32 px: about [0-9]+ MB needed; "
    ) as told:
        run("steps=3", *WORDS)
    folder = tmp_path / "run"
    assert f"last.ckpt is saved, go on with resume={folder}" in str(told.value)
    assert "gradient_checkpointing=true needs about" in str(told.value)
    assert "batch_size=8 gradient_accumulation_steps=4 needs about" in str(told.value) and "(the same result)" in str(
        told.value
    )
    assert json.loads((folder / "run.json").read_text())["state"] == "failed"
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 2
    short(-1)
    _, resumed = run("steps=3", *WORDS, f"resume={folder}", name="resumed")
    ours, theirs = load_file(resumed / ADAPTER), load_file(whole / ADAPTER)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_only_what_applies_is_advised_and_nothing_is_saved_before_a_step(run, short, tmp_path):
    short(0)
    with pytest.raises(ValueError, match="out of memory at step 0") as told:
        run("steps=2", "batch_size=1", "gradient_accumulation_steps=2", "gradient_checkpointing=true")
    for word in ("gradient_checkpointing", "batch_size", "cache=disk", "bf16", "method=lora"):
        assert word not in str(told.value)
    assert "nothing is saved to go on from" in str(told.value) and not (tmp_path / "run" / "checkpoints").exists()


def test_what_is_there_decides_what_is_enough(run, short, monkeypatch):
    short(0)
    monkeypatch.setattr(
        "sdft.training.oom_advice.get_free_and_total_memory", lambda device, held: (int(45e6), int(45e6))
    )
    with pytest.raises(ValueError, match="about 6[0-9] MB needed, 43 MB there; ") as told:
        run("steps=2", "method=sft", "batch_size=8", "gradient_accumulation_steps=2", "log_every=1")
    assert "method=lora needs about" in str(told.value) and "gradient_checkpointing=true needs" not in str(told.value)


def test_pictures_that_do_not_fit_are_drawn_fewer_at_once(run, monkeypatch):
    def draw(self, model, requests, resolution):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    draw.__code__ = draw.__code__.replace(co_filename="sdft/sampling.py")
    monkeypatch.setattr(Sampling, "sample_images", draw)
    with pytest.raises(
        ValueError, match="out of memory at step 0 with 20 pictures drawn at once: .*sampling.batch_size="
    ):
        run("steps=2")
