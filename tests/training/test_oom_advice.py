"""Out of memory: the last complete step is saved, and one line names options that reduce memory."""

import json

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from sdft.models.sampling import Sampling
from sdft.runs.checkpoint_file import read_checkpoint
from sdft.training.module import DiffusionModule
from sdft.training.oom_advice import is_out_of_disk, is_out_of_memory

OVERRIDES = ["batch_size=16", "gradient_accumulation_steps=2", "save_every=0", "ema=0.9"]
ADAPTER = "adapter/pytorch_lora_weights.safetensors"


def test_resource_errors_are_recognized():
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError()):
        assert is_out_of_memory(error) and not is_out_of_disk(error)
    for text in ("DefaultCPUAllocator: can't allocate memory: you tried", "MPS backend out of memory (MPS allocated)"):
        assert is_out_of_memory(RuntimeError(text))
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert is_out_of_memory(error.value)
    assert is_out_of_disk(OSError(28, "No space left on device")) and not is_out_of_disk(FileNotFoundError(2, "none"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit")) and not is_out_of_memory(ValueError("out of memory"))


@pytest.fixture
def run_out_of_memory(monkeypatch):
    """A function that makes the second micro-batch of a step run out of memory."""
    original, failing_step = DiffusionModule.training_step, [-1]

    def training_step(self, batch, number):
        if self.trainer.global_step == failing_step[0] and number % 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, batch, number)

    def set_failing_step(step: int) -> None:
        failing_step[0] = step

    monkeypatch.setattr(DiffusionModule, "training_step", training_step)
    return set_failing_step


@pytest.mark.slow
def test_the_last_complete_step_is_saved_and_resumed(run, run_out_of_memory, tmp_path):
    _, uninterrupted = run("steps=3", *OVERRIDES, name="uninterrupted")
    run_out_of_memory(2)
    with pytest.raises(ValueError, match="at step 2 with batch_size=16 at 32 px; ") as error:
        run("steps=3", *OVERRIDES)
    folder = tmp_path / "run"
    message = str(error.value)
    assert "last.ckpt is saved" in message and message.endswith(f"resume={folder}")
    for option in (
        "gradient_checkpointing=true",
        "batch_size",
        "gradient_accumulation_steps",
        "optimizer=",
        "resolution",
    ):
        assert option in message
    assert json.loads((folder / "run.json").read_text())["state"] == "failed"
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 2
    run_out_of_memory(-1)
    _, resumed = run("steps=3", *OVERRIDES, f"resume={folder}", name="resumed")
    actual, expected = load_file(resumed / ADAPTER), load_file(uninterrupted / ADAPTER)
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_nothing_is_saved_before_a_step(run, run_out_of_memory, tmp_path):
    run_out_of_memory(0)
    with pytest.raises(ValueError, match="out of memory at step 0") as error:
        run("steps=2", "batch_size=1", "gradient_accumulation_steps=2")
    assert "no checkpoint was saved" in str(error.value) and not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("optimizer", ["adamw8bit", "adafactor"])
def test_suggested_optimizers_exist(optimizer):
    assert (ROOT / "conf" / "optimizer" / f"{optimizer}.yaml").is_file()


def test_a_smaller_sampling_batch_is_suggested_for_sampling(run, monkeypatch):
    def sample_images(self, model, requests, resolution):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    code = sample_images.__code__.replace(co_filename="sdft/models/sampling.py")
    sample_images.__code__ = code
    monkeypatch.setattr(Sampling, "sample_images", sample_images)
    with pytest.raises(ValueError, match="at step 0 with sampling; .*sampling.batch_size"):
        run("steps=2")
