"""Warm-up, shapes and floors, step by step."""

import pytest
import torch

from sdft.schedule import SHAPES, Schedule


def factors(steps=100, **options):
    schedule = Schedule(**options)
    return [schedule.factor(step, steps) for step in range(steps)]


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_the_last_step_is_at_the_floor(shape):
    assert factors(shape=shape, warmup=10, floor=0.1)[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_warm_up_rises_to_the_full_rate(shape):
    rates = factors(shape=shape, warmup=4)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_warm_up_below_one_is_a_share():
    assert Schedule("constant", warmup=0.1).warmup_steps(200) == 20


def test_cosine_is_half_way_down_in_the_middle():
    assert factors(101, shape="cosine")[50] == pytest.approx(0.5)


def test_restarts_come_back_to_the_full_rate():
    rates = factors(91, shape="cosine_with_restarts", cycles=3)
    assert [rates[0], rates[30], rates[60]] == pytest.approx([1, 1, 1]) and rates[29] < 0.01


def test_the_optimizer_follows():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = Schedule("linear")(optimizer, 3)
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [2, 1, 0]


def test_bad_words_are_refused():
    with pytest.raises(ValueError, match=r"schedule.shape=round: choose one of constant, linear"):
        Schedule("round")
    with pytest.raises(ValueError, match="warmup=30: choose fewer than the run's 20 steps"):
        Schedule("constant", warmup=30)(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), 20)
