"""Learning-rate schedules: warm-up, shapes and final factors."""

import pytest
import torch

from sdft.data.batch_sampler import SamplingPlan
from sdft.training.lr_schedule import SCHEDULE_SHAPES, LRSchedule
from sdft.training.settings import TrainingSettings


def compute_factors(steps=100, **options):
    schedule = LRSchedule(**options)
    return [schedule.compute_factor(step, steps) for step in range(steps)]


@pytest.mark.parametrize("shape", SCHEDULE_SHAPES[1:])
def test_the_last_step_has_the_final_factor(shape):
    assert compute_factors(shape=shape, warmup=10, min_lr_ratio=0.1)[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("shape", SCHEDULE_SHAPES)
def test_warm_up_rises_to_the_full_learning_rate(shape):
    rates = compute_factors(shape=shape, warmup=4)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_warm_up_below_one_is_a_fraction_of_the_run():
    assert LRSchedule("constant", warmup=0.1).count_warmup_steps(200) == 20


def test_cosine_is_half_in_the_middle():
    assert compute_factors(101, shape="cosine")[50] == pytest.approx(0.5)


def test_polynomial_is_a_power_of_the_remaining_fraction():
    assert compute_factors(101, shape="polynomial", power=2.0, min_lr_ratio=0.2)[50] == pytest.approx(0.2 + 0.8 * 0.25)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("world_size", [1, 2])
def test_cosine_ends_at_its_final_factor_for_any_accumulation_and_world_size(accumulate, world_size):  # pitfall 13
    settings = TrainingSettings(epochs=3, batch_size=2, gradient_accumulation_steps=accumulate)
    steps = settings.count_steps(SamplingPlan(0, [0] * 50, settings.samples_per_step(world_size)))
    assert LRSchedule("cosine", warmup=0.1, min_lr_ratio=0.05).compute_factor(steps - 1, steps) == pytest.approx(0.05)


def test_restarts_return_to_the_full_learning_rate():
    rates = compute_factors(91, shape="cosine_with_restarts", num_cycles=3)
    assert [rates[0], rates[30], rates[60]] == pytest.approx([1, 1, 1]) and rates[29] < 0.01


def test_the_optimizer_follows_the_schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = LRSchedule("linear")(optimizer, 3)
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [2, 1, 0]


def test_invalid_options_are_rejected():
    with pytest.raises(ValueError, match=r"schedule.shape=round: .*constant, linear"):
        LRSchedule("round")
    with pytest.raises(ValueError, match="warmup=30: .*20 steps"):
        LRSchedule("constant", warmup=30)(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), 20)
    for options, message in (
        ({"power": 2.0}, "schedule.power=2.0"),
        ({"num_cycles": 0}, "num_cycles=0"),
        ({"min_lr_ratio": 2.0}, "min_lr_ratio=2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            LRSchedule("cosine", **options)
