"""Steps, epochs and what they cost."""

import pytest

from sdft.data.batch_sampler import SamplingPlan
from sdft.runs.checkpoint_file import write_checkpoint
from sdft.training.settings import TrainingSettings


def test_steps_win_over_epochs():
    assert TrainingSettings(steps=7, epochs=100).count_steps(SamplingPlan(0, [0] * 50, 1)) == 7


@pytest.mark.parametrize(
    ("batch", "accumulate", "world", "steps"), [(1, 1, 1, 100), (2, 1, 1, 50), (2, 4, 1, 13), (2, 1, 2, 25)]
)
def test_epochs_become_steps_of_all_that_a_step_takes(batch, accumulate, world, steps):  # S3-16
    loop = TrainingSettings(epochs=2, batch_size=batch, gradient_accumulation_steps=accumulate)
    assert loop.count_steps(SamplingPlan(0, [0] * 50, loop.samples_per_step(world))) == steps


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "steps=None epochs=None: give one of them"),
        ({"steps": 0, "epochs": 0}, "steps=0 epochs=0"),
        ({"steps": -1}, "steps=-1: choose 1 or more"),
        ({"steps": 1, "gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0: choose 1 or more"),
        ({"steps": 1, "ema": 1.0}, "ema=1.0"),
        ({"steps": 1, "lr": -1.0}, "lr=-1.0"),
    ],
)
def test_bad_words_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        TrainingSettings(**options)


def test_resume_takes_a_file_or_a_run_folder(tmp_path):
    with pytest.raises(ValueError, match="resume=.*: no checkpoint there"):
        TrainingSettings(steps=1, resume=str(tmp_path)).find_checkpoint()
    last = tmp_path / "checkpoints" / "last.ckpt"
    write_checkpoint({"global_step": 1}, last)
    assert (
        TrainingSettings(steps=1, resume=str(tmp_path)).find_checkpoint()
        == last
        == TrainingSettings(steps=1, resume=str(last)).find_checkpoint()
    )
