"""Losses by timestep quarter, speed without pauses, and the device name."""

import time

import pytest
import torch

from sdft.training.callbacks.metrics import TrainingMetrics
from sdft.training.run_summary import format_device


class RecordingLogger:
    def __init__(self):
        self.rows = []

    def log_metrics(self, row, step):
        self.rows.append((step, row))


@pytest.fixture
def training(tiny):
    """(training_metrics, trainer, module) of a run that reports every other step."""
    logger = RecordingLogger()
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.5, "name": "unet"}])
    strategy = type("Strategy", (), {"reduce": lambda self, t, reduce_op: t})()
    attributes = {
        "global_step": 0,
        "world_size": 1,
        "accumulate_grad_batches": 1,
        "loggers": [logger],
        "optimizers": [optimizer],
    }
    trainer = type("Trainer", (), attributes | {"strategy": strategy})()
    module = type("Module", (), {"model": tiny(), "device": torch.device("cpu"), "grad_norm": torch.tensor(0.25)})()
    training_metrics = TrainingMetrics(every=2)
    training_metrics.on_train_start(trainer, module)
    return training_metrics, trainer, module


def run_step(training_metrics, trainer, module, losses, timesteps):
    trainer.global_step += 1
    training_metrics.on_before_optimizer_step(trainer, module, trainer.optimizers[0])
    outputs = {"losses": torch.tensor(losses), "timestep": torch.tensor(timesteps)}
    weights = {"weight": torch.ones(len(losses)), "sample_weight": torch.ones(len(losses))}
    training_metrics.on_train_batch_end(trainer, module, outputs, weights, trainer.global_step - 1)


def test_loss_overall_and_by_timestep_quarter(training):
    training_metrics, trainer, module = training
    run_step(training_metrics, trainer, module, [1.0, 2.0], [0, 249])
    assert not trainer.loggers[0].rows
    run_step(training_metrics, trainer, module, [3.0, 6.0], [250, 999])
    ((step, row),) = trainer.loggers[0].rows
    assert step == 2
    assert row["train/loss"] == pytest.approx(3) and row["train/grad_norm"] == 0.25 and row["train/lr_unet"] == 0.5
    assert [row.get(f"train/loss_quarter_{q}") for q in (1, 2, 3, 4)] == [1.5, 3, None, 6]


def test_a_row_has_the_rates_with_which_its_step_was_taken(training):
    training_metrics, trainer, module = training
    (group,) = trainer.optimizers[0].param_groups
    for step in (1, 2):
        group |= {"lr": 1.0 / step, "d": 0.25}
        training_metrics.on_before_optimizer_step(trainer, module, trainer.optimizers[0])
        trainer.global_step = step
        group |= {"lr": 0.0, "d": 8.0}  # the schedule and Prodigy advance
        outputs = {"losses": torch.ones(1), "timestep": torch.zeros(1, dtype=torch.long)}
        training_metrics.on_train_batch_end(
            trainer, module, outputs, {"weight": torch.ones(1), "sample_weight": torch.ones(1)}, step - 1
        )
    assert training_metrics.last["lr_unet"] == 0.5 * 0.25
    resumed = TrainingMetrics(every=2)
    resumed.load_state_dict(training_metrics.state_dict())
    assert resumed.rates == training_metrics.rates  # reported by a run that resumes after its last step


def test_pauses_do_not_count_as_training_time(training):  # pitfall 35
    training_metrics, trainer, module = training
    run_step(training_metrics, trainer, module, [1.0], [0])
    with training_metrics.pause_clock():
        time.sleep(0.5)
    time.sleep(0.05)
    run_step(training_metrics, trainer, module, [1.0], [0])
    assert training_metrics.last["images_per_second"] > 2 / 0.3


def test_the_device_is_named():
    assert format_device(torch.device("cpu"), 1).endswith(", 1 thread)")
    assert format_device(torch.device("cpu"), 2).endswith(", 2 threads)")


def test_a_pause_that_fails_is_a_pause(training):
    training_metrics = training[0]
    with pytest.raises(KeyboardInterrupt), training_metrics.pause_clock():
        time.sleep(0.05)
        raise KeyboardInterrupt
    assert training_metrics.paused_seconds >= 0.05


def test_losses_of_an_incomplete_step_are_not_stored(training):
    training_metrics, trainer, module = training
    trainer.accumulate_grad_batches, trainer.is_global_zero = 2, True
    for batch_idx, loss in enumerate((1.0, 2.0, 4.0)):
        outputs = {"losses": torch.tensor([loss]), "timestep": torch.tensor([0])}
        trainer.global_step = (batch_idx + 1) // 2
        training_metrics.on_train_batch_end(trainer, module, outputs, {}, batch_idx)
    assert training_metrics.state_dict()["sums"][0] == [3, 2]
    assert training_metrics.state_dict()["sums"][0] == [3, 2]  # storing them changes nothing
    resumed = TrainingMetrics(every=2)
    resumed.load_state_dict(training_metrics.state_dict())
    resumed.on_train_start(trainer, module)
    assert resumed.state_dict()["sums"][0] == [3, 2]


def test_absent_weights_are_one_and_padding_does_not_count(training):
    training_metrics, trainer, module = training
    outputs = {"losses": torch.tensor([1.0, 2.0]), "timestep": torch.tensor([0, 999])}
    weights = ({}, {"sample_weight": torch.zeros(2)}, {"weight": torch.tensor([2.0, 0.5])})
    trainer.global_step = 1
    for batch in weights:
        training_metrics.on_train_batch_end(trainer, module, outputs, batch, 0)
    assert training_metrics.state_dict()["sums"] == [[3, 2], [0, 0], [0, 0], [3, 2]]


def test_long_intervals_hold_a_bounded_number_of_tensors(training, monkeypatch):
    monkeypatch.setattr("sdft.training.callbacks.metrics.MAX_PENDING", 3)
    training_metrics, trainer, module = training
    training_metrics.every = 100
    for _ in range(10):
        run_step(training_metrics, trainer, module, [1.0], [0])
        assert len(training_metrics.pending) < 3
    assert training_metrics.state_dict()["sums"][0] == [10, 10]
