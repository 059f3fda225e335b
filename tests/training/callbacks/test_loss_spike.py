"""A loss that leaps is told once; the usual noise of diffusion losses never is."""

import math
import random
from types import SimpleNamespace

import pytest

from sdft.training.callbacks.loss_spike import LossSpikeWarning
from sdft.training.module import DiffusionModule


def told(losses: list[float], halt: int | None = None) -> list[int]:
    """Reports that are warned about, counted from 1; `halt` goes on from a checkpoint after so many."""
    found = []
    training_metrics = SimpleNamespace(last_report_step=0, last={})
    logger = SimpleNamespace(log_metrics=lambda metrics, step: found.append(step))
    trainer = SimpleNamespace(is_global_zero=False, loggers=[logger])
    spikes = LossSpikeWarning(training_metrics)
    for number, loss in enumerate(losses, 1):
        training_metrics.last_report_step, training_metrics.last = number, {"loss": loss}
        spikes.on_train_batch_end(trainer, None, None, None, 0)
        spikes.on_train_batch_end(trainer, None, None, None, 0)  # a batch without a report
        if number == halt:
            before, spikes = spikes, LossSpikeWarning(training_metrics)
            spikes.on_train_start(trainer, None)
            spikes.load_state_dict(before.state_dict())
    return found


@pytest.mark.parametrize("spread", [0.05, 0.3, 1.0, 1.5])
def test_usual_noise_is_no_spike(spread):
    """Losses of single pictures differ by timestep as a log-normal of deviation 1 or so; those of large batches by little."""
    chance, count = random.Random(0), 0
    for _ in range(300):
        count += len(told([math.exp(chance.gauss(-2 - number / 200, spread)) for number in range(200)]))
    assert count <= 6  # of 60,000


def test_a_leap_is_told_once_and_again_when_it_comes_again():
    chance = random.Random(1)
    noise = [0.1 * math.exp(chance.gauss(0, 0.2)) for _ in range(100)]
    leap = [value * (10 if number in (40, 41, 42, 70) else 1) for number, value in enumerate(noise, 1)]
    assert told(leap) == [40, 70]
    assert told(leap[:12]) == [] and told([10 * noise[0], *noise]) == []


@pytest.mark.parametrize("halt", [20, 40, 41, 55])
def test_a_resumed_run_warns_as_one_that_never_stopped(halt):
    leap = [1.0 if number in (40, 41, 42, 70) else 0.1 + number / 1e4 for number in range(1, 100)]
    assert told(leap, halt) == told(leap) == [40, 70]


def test_what_stays_high_is_usual_after_a_while():
    assert told([0.1 + n / 1e4 for n in range(20)] + [1.0 + n / 1e3 for n in range(40)] + [10.0]) == [21, 61]


def test_what_is_no_number_is_left_to_others():
    assert told([0.1] * 20 + [math.nan, math.inf] + [0.1] * 20) == []


def test_a_run_says_it(run, monkeypatch, capsys):
    losses = DiffusionModule.compute_losses

    def leap(self, batch):
        return losses(self, batch) * (100 if self.global_step == 12 else 1)

    monkeypatch.setattr(DiffusionModule, "compute_losses", leap)
    _, folder = run("steps=14", "lr=1e-4", "data.per_digit=2")
    assert "warning  step 13: the loss is " in capsys.readouterr().out
    assert "train/spike" in (folder / "metrics.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("words", [["batch_size=1"], ["batch_size=8", "lr=1e-3", "model.weights=pretrained"]])
def test_a_plain_run_never_says_it(run, capsys, words):
    run("steps=120", *words)
    assert "times its usual" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_rate_that_leaps_is_told(run, monkeypatch, capsys):
    """A rate of .1 from step 30 of full fine-tuning destroys the model."""
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
    assert "times its usual" in capsys.readouterr().out
