"""Interpolation of latents, channel statistics, and even spacing."""

import itertools

import numpy as np
import pytest
import torch

from sdft.apps.morph.interpolation import adain, compute_channel_statistics, lerp, slerp, space_evenly


@pytest.fixture
def endpoints():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(1, 4, 16, 16, generator=draw) for _ in range(2)]


def test_slerp_reaches_its_endpoints_and_preserves_the_norm(endpoints):
    one, other = endpoints[0], endpoints[1] * endpoints[0].norm() / endpoints[1].norm()
    torch.testing.assert_close(slerp(one, other, 0.0), one)
    torch.testing.assert_close(slerp(one, other, 1.0), other)
    for alpha in (0.2, 0.5, 0.9):
        assert slerp(one, other, alpha).norm() == pytest.approx(float(one.norm()), rel=1e-5)
    assert lerp(one, other, 0.5).norm() < 0.8 * one.norm()  # why noise is interpolated by slerp


def test_equal_steps_of_slerp_are_equal_angles(endpoints):
    one, other = (end.flatten() for end in endpoints)
    points = [slerp(one / one.norm(), other / other.norm(), alpha) for alpha in np.linspace(0, 1, 5)]
    cosines = [float(a @ b) for a, b in itertools.pairwise(points)]
    assert max(cosines) - min(cosines) < 1e-5


def test_slerp_of_equal_endpoints_is_the_identity(endpoints):
    torch.testing.assert_close(slerp(endpoints[0], endpoints[0].clone(), 0.3), endpoints[0])


def test_adain_interpolates_the_statistics_of_each_channel(endpoints):
    one, other = endpoints[0] * 2 + 3, endpoints[1] * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1) - 1
    mixed = adain(torch.randn(1, 4, 16, 16), one, other, 0.25)
    for actual, first, second in zip(
        compute_channel_statistics(mixed),
        compute_channel_statistics(one),
        compute_channel_statistics(other),
        strict=True,
    ):
        torch.testing.assert_close(actual, 0.75 * first + 0.25 * second, atol=1e-5, rtol=1e-5)


def test_adain_leaves_an_endpoint_unchanged(endpoints):
    torch.testing.assert_close(adain(endpoints[0], *endpoints, 0.0), endpoints[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(adain(endpoints[1], *endpoints, 1.0), endpoints[1], atol=1e-5, rtol=1e-5)


def squared_steps(alphas, curve) -> list[float]:
    return [(curve(b) - curve(a)) ** 2 for a, b in itertools.pairwise(alphas)]


def test_even_spacing_gives_equal_steps_on_a_steep_curve():
    steep = lambda alpha: alpha**4  # noqa: E731
    before = np.linspace(0, 1, 101).tolist()
    after = space_evenly(before, squared_steps(before, steep), 11)
    assert after[0] == 0 and after[-1] == 1 and after == sorted(after)
    steps = np.sqrt(squared_steps(after, steep))
    assert steps == pytest.approx([0.1] * 10, abs=2e-3)
    assert np.var(steps) < 1e-2 * np.var(np.sqrt(squared_steps(np.linspace(0, 1, 11), steep)))


def test_even_spacing_of_an_even_or_constant_curve_is_uniform():
    uniform = np.linspace(0, 1, 6)
    assert space_evenly(uniform.tolist(), [0.04] * 5, 6) == pytest.approx(uniform.tolist())
    assert space_evenly(uniform.tolist(), [0.0] * 5, 6) == pytest.approx(uniform.tolist())
