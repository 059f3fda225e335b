"""Training settings: steps, epochs, validation and resuming."""

import pytest

from sdft.data.batch_sampler import SamplingPlan
from sdft.runs.checkpoint_file import write_checkpoint
from sdft.training.run_setup import load_resume_point
from sdft.training.settings import TrainingSettings


def test_steps_override_epochs():
    assert TrainingSettings(steps=7, epochs=100).count_steps(SamplingPlan(0, [0] * 50, 1)) == 7


@pytest.mark.parametrize(
    ("batch", "accumulate", "world_size", "steps"), [(1, 1, 1, 100), (2, 1, 1, 50), (2, 4, 1, 13), (2, 1, 2, 25)]
)
def test_epochs_are_converted_to_optimizer_steps(batch, accumulate, world_size, steps):  # S3-16
    settings = TrainingSettings(epochs=2, batch_size=batch, gradient_accumulation_steps=accumulate)
    assert settings.count_steps(SamplingPlan(0, [0] * 50, settings.samples_per_step(world_size))) == steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "steps=None epochs=None: "),
        ({"steps": 0, "epochs": 0}, "steps=0 epochs=0"),
        ({"steps": -1}, "steps=-1: .*1 or more"),
        ({"steps": 1, "gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0: .*1 or more"),
        ({"steps": 1, "ema": 1.0}, "ema=1.0"),
        ({"steps": 1, "lr": -1.0}, "lr=-1.0"),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**options)


def test_resume_accepts_a_file_or_a_run_folder(tmp_path):
    with pytest.raises(ValueError, match="resume=.*: no checkpoint"):
        TrainingSettings(steps=1, resume=str(tmp_path)).find_checkpoint()
    last = tmp_path / "checkpoints" / "last.ckpt"
    write_checkpoint({"global_step": 1}, last)
    assert (
        TrainingSettings(steps=1, resume=str(tmp_path)).find_checkpoint()
        == last
        == TrainingSettings(steps=1, resume=str(last)).find_checkpoint()
    )


def test_a_resumed_run_knows_the_samples_of_every_earlier_step(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint({"global_step": 3, "step_sizes": [(0, 4)]}, path)
    assert load_resume_point(path, 4) == (3, [(0, 4)]) and load_resume_point(None, 4) == (0, [(0, 4)])
    assert load_resume_point(path, 8) == (3, [(0, 4), (3, 8)])
    write_checkpoint({"global_step": 3}, path)
    with pytest.raises(ValueError, match=r"resume=.*last\.ckpt: "):
        load_resume_point(path, 4)
