"""Callbacks and Trainer flags of the user's own, from yaml or the command line."""

import csv

import pytest
from lightning.pytorch.profilers import SimpleProfiler

from sdft.training.trainer import NoProfiler, build_lightning_trainer


def test_callbacks_and_flags_of_the_user_reach_the_trainer(run):
    _, folder = run("steps=2", "callbacks=device_stats", "+trainer.benchmark=true", "sample_every=0")
    with (folder / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert any(name.startswith("DeviceStatsMonitor") for name in columns)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+trainer.max_steps=3", "trainer.max_steps=3: .*steps"),
        ("+trainer.gradient_clip_val=1", "trainer.gradient_clip_val=1: .*max_grad_norm"),
        ("+trainer.precision=16", "trainer.precision=16: .*precision"),
        ("+trainer.nonsense=1", "trainer.nonsense=1: .*benchmark"),
        ("+callbacks.mine=3", "callbacks.mine=3"),
        ("+callbacks.mine._target_=fractions.Fraction", "callbacks.mine="),
        ("+callbacks.mine._target_=builtins.dict", "callbacks.mine._target_=builtins.dict"),
    ],
)
def test_flags_that_an_option_sets_are_refused(run, override, key):
    with pytest.raises(ValueError, match=key):
        run("steps=1", override)


def test_hooks_are_profiled_only_on_request():
    assert isinstance(build_lightning_trainer([], logger=False, enable_checkpointing=False).profiler, NoProfiler)
    profiler = build_lightning_trainer([], logger=False, enable_checkpointing=False, profiler="simple").profiler
    assert isinstance(profiler, SimpleProfiler)
