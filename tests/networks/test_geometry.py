"""Distances, cutoff functions and harmonics of edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equibit.networks.geometry import (
    ENVELOPES,
    cosine_envelope,
    edge_geometry,
    polynomial_envelope,
)

CUTOFF = 4.0


@pytest.mark.parametrize("name", ENVELOPES)
def test_envelope_falls_from_one_to_exactly_zero(name: str) -> None:
    distances = torch.linspace(0, CUTOFF, 200, dtype=torch.float64)
    values = ENVELOPES[name](distances, CUTOFF)
    assert values[0] == 1
    assert (values.diff() <= 1e-15).all()
    beyond = torch.tensor([CUTOFF, 1.01 * CUTOFF, 1e3], dtype=torch.float64)
    assert (ENVELOPES[name](beyond, CUTOFF) == 0).all()


@pytest.mark.parametrize(("envelope", "order"), [(cosine_envelope, 1), (polynomial_envelope, 2)])
def test_envelope_joins_zero_smoothly(envelope, order: int) -> None:  # type: ignore[no-untyped-def]
    distance = torch.tensor([CUTOFF - 1e-7], dtype=torch.float64, requires_grad=True)
    value = envelope(distance, CUTOFF)
    for _ in range(order):
        assert abs(value.item()) < 1e-5
        (value,) = torch.autograd.grad(value.sum(), distance, create_graph=True)
    assert abs(value.item()) < 1e-5


def test_polynomial_envelope_is_the_one_of_dimenet() -> None:
    """1 − 28x⁶ + 48x⁷ − 21x⁸ for p = 6."""
    x = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    expected = 1 - 28 * x**6 + 48 * x**7 - 21 * x**8
    torch.testing.assert_close(polynomial_envelope(x * CUTOFF, CUTOFF), expected)


@pytest.mark.parametrize("name", ENVELOPES)
def test_envelope_has_finite_derivatives_far_away(name: str) -> None:
    distance = torch.tensor([1e3], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(ENVELOPES[name](distance, CUTOFF).sum(), distance)
    assert slope.item() == 0


@given(
    vector=st.tuples(*[st.floats(min_value=-3, max_value=3)] * 3).filter(
        lambda v: sum(c * c for c in v) > 1e-2
    )
)
def test_each_number_is_rounded_once(vector: tuple[float, ...]) -> None:
    """float32 geometry is the float64 geometry, rounded: no float32 arithmetic in between."""
    edges = torch.tensor([vector], dtype=torch.float64)
    exact = edge_geometry(edges, CUTOFF, (1, 2), "polynomial", torch.float64)
    rounded = edge_geometry(edges, CUTOFF, (1, 2), "polynomial", torch.float32)
    assert torch.equal(rounded.distances, exact.distances.float())
    assert torch.equal(rounded.envelope, exact.envelope.float())
    for degree in (1, 2):
        assert torch.equal(rounded.harmonics[degree], exact.harmonics[degree].float())


def test_geometry_holds_the_degrees_asked_for() -> None:
    geometry = edge_geometry(
        torch.tensor([[0.0, 3.0, 4.0]], dtype=torch.float64), 6.0, (1, 3), "cosine", torch.float64
    )
    assert geometry.distances.item() == 5
    assert {degree: y.shape[-1] for degree, y in geometry.harmonics.items()} == {1: 3, 3: 7}
    # Y_1 = √(3/4π) (y, z, x)
    expected = (3 / (4 * torch.pi)) ** 0.5 * torch.tensor([[0.6, 0.8, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(geometry.harmonics[1], expected)
