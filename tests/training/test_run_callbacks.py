"""The callbacks of a run, in the order that `run_callbacks.py` declares."""

from pathlib import Path
from types import SimpleNamespace

import torch
from lightning import Callback
from omegaconf import OmegaConf

from sdft.models.sampling import Sampling
from sdft.runs.invocation import Invocation
from sdft.training.callbacks.ema import EMA
from sdft.training.callbacks.metrics import TrainingMetrics
from sdft.training.callbacks.sample_images import SampleImageWriter
from sdft.training.run_callbacks import CALLBACK_ORDER, build_callbacks
from sdft.training.settings import TrainingSettings


class UserCallback(Callback):
    pass


def build(**options) -> list[Callback]:
    settings = TrainingSettings(steps=4, **options)
    parts = {"training": settings, "sampling": Sampling(), "callbacks": {"mine": UserCallback()}}
    cfg = OmegaConf.create({"resolution": 32, "name": "it"})
    inputs = SimpleNamespace(prompts=["a three"], checkpoint=None)
    evaluation = SimpleNamespace(images=2) if settings.evaluate_every else None
    return build_callbacks(cfg, parts, SimpleNamespace(validation=None), inputs, evaluation, Invocation(Path("run")))


def test_callbacks_run_in_the_declared_order_and_the_users_before_checkpoints():
    names = [type(callback).__name__ for callback in build(evaluate_every=2)]
    assert len(names) == len(CALLBACK_ORDER) == len(set(names))
    assert names[0] == "StopRequestListener" and names[-3:] == ["UserCallback", "StopOnRequest", "PeriodicCheckpoint"]
    for first, second in (
        ("NanCheck", "TrainingMetrics"),
        ("TrainingMetrics", "ProgressBar"),
        ("EMA", "ValidationLoss"),
        ("EMA", "SampleImageWriter"),
        ("SampleImageWriter", "ResultExport"),
        ("PeriodicEvaluation", "ResultExport"),
    ):
        assert names.index(first) < names.index(second), (first, second)
    assert "PeriodicEvaluation" not in [type(callback).__name__ for callback in build()]


def test_callbacks_find_the_folder_and_each_other_in_setup(tmp_path):
    callbacks = build(ema=0.9)
    trainer = SimpleNamespace(callbacks=callbacks, default_root_dir=str(tmp_path))
    (samples,) = (callback for callback in callbacks if isinstance(callback, SampleImageWriter))
    samples.setup(trainer, None, "fit")
    assert samples.folder == tmp_path
    assert isinstance(samples.training_metrics, TrainingMetrics) and samples.ema.decay == 0.9


def test_without_a_decay_there_is_no_average_also_when_a_checkpoint_has_one():
    ema, weight = EMA(0.0), torch.nn.Parameter(torch.ones(2))
    ema.load_state_dict({"average": {"weight": torch.zeros(2)}, "updates": 7})
    module = SimpleNamespace(get_trainable_parameters=lambda: {"weight": weight})
    ema.on_train_start(SimpleNamespace(global_step=0), module)
    ema.on_train_batch_end(SimpleNamespace(global_step=1), module, None, None, 0)
    assert ema.state_dict() == {"average": {}, "updates": 0}
