"""Arcs, statistics and paces between two ends."""

import itertools

import numpy as np
import pytest
import torch

from sdft.apps.morph.interpolation import adain, compute_channel_statistics, lerp, slerp, space_evenly


@pytest.fixture
def ends():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(1, 4, 16, 16, generator=draw) for _ in range(2)]


def test_an_arc_begins_and_ends_at_its_ends_and_keeps_their_norm(ends):
    one, other = ends[0], ends[1] * ends[0].norm() / ends[1].norm()
    torch.testing.assert_close(slerp(one, other, 0.0), one)
    torch.testing.assert_close(slerp(one, other, 1.0), other)
    for share in (0.2, 0.5, 0.9):
        assert slerp(one, other, share).norm() == pytest.approx(float(one.norm()), rel=1e-5)
    assert lerp(one, other, 0.5).norm() < 0.8 * one.norm()  # which is why noise goes along an arc


def test_equal_shares_of_an_arc_are_equal_angles(ends):
    one, other = (end.flatten() for end in ends)
    points = [slerp(one / one.norm(), other / other.norm(), share) for share in np.linspace(0, 1, 5)]
    cosines = [float(a @ b) for a, b in itertools.pairwise(points)]
    assert max(cosines) - min(cosines) < 1e-5


def test_equal_ends_have_no_arc_between_them(ends):
    torch.testing.assert_close(slerp(ends[0], ends[0].clone(), 0.3), ends[0])


def test_statistics_lie_between_those_of_the_ends_channel_by_channel(ends):
    one, other = ends[0] * 2 + 3, ends[1] * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1) - 1
    mixed = adain(torch.randn(1, 4, 16, 16), one, other, 0.25)
    for got, first, second in zip(
        compute_channel_statistics(mixed),
        compute_channel_statistics(one),
        compute_channel_statistics(other),
        strict=True,
    ):
        torch.testing.assert_close(got, 0.75 * first + 0.25 * second, atol=1e-5, rtol=1e-5)


def test_statistics_leave_an_end_as_it_is(ends):
    torch.testing.assert_close(adain(ends[0], *ends, 0.0), ends[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(adain(ends[1], *ends, 1.0), ends[1], atol=1e-5, rtol=1e-5)


def squared(alphas, curve) -> list[float]:
    return [(curve(b) - curve(a)) ** 2 for a, b in itertools.pairwise(alphas)]


def test_even_pacing_makes_equal_steps_of_a_curve_that_rushes():
    rushing = lambda share: share**4  # noqa: E731
    before = np.linspace(0, 1, 101).tolist()
    after = space_evenly(before, squared(before, rushing), 11)
    assert after[0] == 0 and after[-1] == 1 and after == sorted(after)
    steps = np.sqrt(squared(after, rushing))
    assert steps == pytest.approx([0.1] * 10, abs=2e-3)
    assert np.var(steps) < 1e-2 * np.var(np.sqrt(squared(np.linspace(0, 1, 11), rushing)))


def test_even_pacing_of_an_even_curve_and_of_no_change_at_all_is_uniform():
    uniform = np.linspace(0, 1, 6)
    assert space_evenly(uniform.tolist(), [0.04] * 5, 6) == pytest.approx(uniform.tolist())
    assert space_evenly(uniform.tolist(), [0.0] * 5, 6) == pytest.approx(uniform.tolist())
