"""A loss spike is reported once; the usual noise of diffusion losses is not."""

import math
import random
from types import SimpleNamespace

import pytest

from sdft.training.callbacks.loss_spike import LossSpikeWarning
from sdft.training.module import DiffusionModule


def find_spikes(losses: list[float], resume_at: int | None = None) -> list[int]:
    """Numbers of the reports with a warning, from 1; `resume_at` resumes from a checkpoint after that report."""
    spikes = []
    training_metrics = SimpleNamespace(last_report_step=0, last={})
    logger = SimpleNamespace(log_metrics=lambda metrics, step: spikes.append(step))
    trainer = SimpleNamespace(is_global_zero=False, loggers=[logger])
    callback = LossSpikeWarning()
    callback.training_metrics = training_metrics
    for number, loss in enumerate(losses, 1):
        training_metrics.last_report_step, training_metrics.last = number, {"loss": loss}
        callback.on_train_batch_end(trainer, None, None, None, 0)
        callback.on_train_batch_end(trainer, None, None, None, 0)  # a batch without a report
        if number == resume_at:
            previous, callback = callback, LossSpikeWarning()
            callback.training_metrics = training_metrics
            callback.on_train_start(trainer, None)
            callback.load_state_dict(previous.state_dict())
    return spikes


@pytest.mark.parametrize("spread", [0.05, 0.3, 1.0, 1.5])
def test_usual_noise_is_not_a_spike(spread):
    """Losses of single images are roughly log-normal with deviation 1 over timesteps; those of large batches vary little."""
    rng, count = random.Random(0), 0
    for _ in range(300):
        count += len(find_spikes([math.exp(rng.gauss(-2 - number / 200, spread)) for number in range(200)]))
    assert count <= 6  # of 60,000


def test_a_spike_is_reported_once_and_a_later_one_again():
    rng = random.Random(1)
    noise = [0.1 * math.exp(rng.gauss(0, 0.2)) for _ in range(100)]
    losses = [value * (10 if number in (40, 41, 42, 70) else 1) for number, value in enumerate(noise, 1)]
    assert find_spikes(losses) == [40, 70]
    assert find_spikes(losses[:12]) == [] and find_spikes([10 * noise[0], *noise]) == []


@pytest.mark.parametrize("resume_at", [20, 40, 41, 55])
def test_a_resumed_run_warns_like_an_uninterrupted_one(resume_at):
    losses = [1.0 if number in (40, 41, 42, 70) else 0.1 + number / 1e4 for number in range(1, 100)]
    assert find_spikes(losses, resume_at) == find_spikes(losses) == [40, 70]


def test_a_loss_that_stays_high_becomes_normal():
    assert find_spikes([0.1 + n / 1e4 for n in range(20)] + [1.0 + n / 1e3 for n in range(40)] + [10.0]) == [21, 61]


def test_nan_and_inf_are_ignored():
    assert find_spikes([0.1] * 20 + [math.nan, math.inf] + [0.1] * 20) == []


def test_a_run_prints_and_logs_it(run, monkeypatch, capsys):
    original = DiffusionModule.compute_losses

    def compute_losses(self, batch):
        return original(self, batch) * (100 if self.global_step == 12 else 1)

    monkeypatch.setattr(DiffusionModule, "compute_losses", compute_losses)
    _, folder = run("steps=14", "lr=1e-4", "data.per_digit=2")
    assert "warning    step 13: loss " in capsys.readouterr().out
    assert "train/spike" in (folder / "metrics.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["batch_size=1"], ["batch_size=8", "lr=1e-3", "model.weights=pretrained"]])
def test_an_ordinary_run_has_no_spikes(run, capsys, overrides):
    run("steps=120", *overrides)
    assert "times its median" not in capsys.readouterr().out


@pytest.mark.slow
def test_an_excessive_learning_rate_is_reported(run, monkeypatch, capsys):
    """A learning rate of 0.1 from step 30 of full fine-tuning destroys the model."""
    monkeypatch.setattr(
        "sdft.training.lr_schedule.LRSchedule.compute_factor", lambda self, step, steps: 1000.0 if step >= 30 else 1.0
    )
    run(
        "steps=45",
        "method=sft",
        "batch_size=8",
        "lr=1e-4",
        "model.weights=pretrained",
        "max_grad_norm=0",
        "on_nan=skip",
    )
    assert "times its median" in capsys.readouterr().out
