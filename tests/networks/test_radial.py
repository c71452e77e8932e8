"""Radial functions are exact cubic B-splines: what is trained is what an engine looks up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equibit.networks.radial import RadialFilter, SplineBasis, cubic_b_splines

CUTOFF = 5.0


def bessel(distances: torch.Tensor, orders: int) -> torch.Tensor:
    k = torch.arange(1, orders + 1, dtype=torch.float64)
    return torch.sin(k * torch.pi * distances.unsqueeze(-1) / CUTOFF) / distances.unsqueeze(-1)


@given(
    share=st.floats(min_value=0, max_value=1, exclude_max=True),
    n_splines=st.integers(min_value=6, max_value=64),
)
def test_b_splines_are_a_partition_of_unity_of_four_taps(share: float, n_splines: int) -> None:
    distance = torch.tensor([share * CUTOFF], dtype=torch.float64)
    values = cubic_b_splines(distance, CUTOFF, n_splines)[0]
    assert values.min() >= 0
    assert (values > 0).sum() <= 4
    assert values.sum().item() == pytest.approx(1.0, abs=1e-14)


def test_b_splines_reproduce_straight_lines() -> None:
    distances = torch.linspace(0, CUTOFF, 101, dtype=torch.float64)
    centres = torch.arange(-1, 15, dtype=torch.float64) * CUTOFF / 13
    line = cubic_b_splines(distances, CUTOFF, 16) @ centres
    torch.testing.assert_close(line, distances, rtol=0, atol=1e-14)


def test_b_splines_have_continuous_second_derivatives() -> None:
    """Left and right of every knot f, f′ and f″ agree, and f‴ does not: cubic, C² and no more."""
    knots = torch.arange(1, 13, dtype=torch.float64) * CUTOFF / 13
    gap = 1e-9
    sides = [(knots + sign * gap).requires_grad_(True) for sign in (-1, 1)]
    kinks = False
    for spline in range(16):
        left_right = []
        for side in sides:
            value = cubic_b_splines(side, CUTOFF, 16)[:, spline]
            derivatives = [value]
            for _ in range(3):
                grown = derivatives[-1]
                if not grown.requires_grad:
                    derivatives.append(torch.zeros_like(knots))
                    continue
                derivatives.append(torch.autograd.grad(grown.sum(), side, create_graph=True)[0])
            left_right.append([d.detach() for d in derivatives])
        left, right = left_right
        for order in range(3):
            torch.testing.assert_close(left[order], right[order], rtol=0, atol=1e-6)

        kinks = kinks or not torch.allclose(left[3], right[3], atol=1e-3)
    assert kinks


def test_filter_equals_the_table_of_its_spline_coefficients() -> None:
    torch.manual_seed(0)
    basis = SplineBasis(CUTOFF, 16, 32)
    filter_ = RadialFilter(16, 24).double()
    distances = torch.rand(500, dtype=torch.float64) * CUTOFF
    table = filter_.spline_coefficients(basis)
    assert table.shape == (32, 24)
    assert table.dtype == torch.float64
    looked_up = cubic_b_splines(distances, CUTOFF, 32) @ table
    torch.testing.assert_close(filter_(basis(distances)), looked_up, rtol=0, atol=1e-12)


def test_table_serves_derivatives_too() -> None:
    """Central differences of the four-tap table equal the derivative of the trained filter."""
    torch.manual_seed(0)
    basis = SplineBasis(CUTOFF, 8, 16)
    filter_ = RadialFilter(8, 3).double()
    table = filter_.spline_coefficients(basis).detach()
    distances = torch.linspace(0.7, 4.9, 40, dtype=torch.float64)
    h = 1e-5
    numerical = (
        cubic_b_splines(distances + h, CUTOFF, 16) - cubic_b_splines(distances - h, CUTOFF, 16)
    ) @ table
    numerical = numerical / (2 * h)
    for channel in range(3):
        d = distances.clone().requires_grad_(True)
        slope = torch.autograd.grad(filter_(basis(d))[:, channel].sum(), d)[0]
        torch.testing.assert_close(slope, numerical[:, channel], rtol=1e-6, atol=1e-8)


def test_basis_follows_the_bessel_functions_it_projects() -> None:
    basis = SplineBasis(CUTOFF, 4, 32)
    distances = torch.linspace(0.8, CUTOFF, 200, dtype=torch.float64)
    target = bessel(distances, 4)
    got = basis(distances)
    for k in range(4):
        scale = (got[:, k] @ target[:, k]) / (target[:, k] @ target[:, k])
        error = (got[:, k] - scale * target[:, k]).abs().max() / got[:, k].abs().max()
        assert error < 2e-3


def test_higher_orders_are_damped() -> None:
    basis = SplineBasis(CUTOFF, 16, 64)
    distances = torch.linspace(0.3, CUTOFF, 1000, dtype=torch.float64)
    rms = basis(distances).square().mean(0).sqrt()
    expected = 1 / (1 + (torch.arange(1, 17) / 4) ** 2)
    np.testing.assert_allclose(rms.numpy(), expected.numpy(), rtol=0.02)


def test_basis_is_finite_at_the_origin_and_keeps_the_dtype() -> None:
    basis = SplineBasis(CUTOFF, 16, 32)
    for dtype in (torch.float32, torch.float64):
        values = basis(torch.tensor([0.0, 1e-3, CUTOFF], dtype=dtype))
        assert values.dtype == dtype
        assert torch.isfinite(values).all()


def test_gradients_reach_the_filter_only() -> None:
    """The projection is a fixed buffer: it is not trained, and it is saved with the network."""
    basis, filter_ = SplineBasis(CUTOFF, 6, 12), RadialFilter(6, 2)
    filter_(basis(torch.rand(10))).sum().backward()
    assert filter_.weight.grad is not None
    assert list(basis.parameters()) == []
    assert "projection" in basis.state_dict()
