"""Harmonics, Wigner matrices and couplings against e3nn, an independent implementation.

e3nn orders axes (y, z, x) where equibit orders (x, y, z), so that both write Y_1 ∝ (y, z, x) of our
axes: e3nn is asked about the axes renamed by ``to_e3nn``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from e3nn import o3

from equibit.networks.harmonics import MAX_DEGREE, clebsch_gordan, spherical_harmonics, wigner_d

DEGREES = range(MAX_DEGREE + 1)
AXES = [1, 2, 0]


def to_e3nn(vectors: torch.Tensor) -> torch.Tensor:
    return vectors[..., AXES]


def random_directions(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    axes = torch.eye(3, dtype=torch.float64)
    return torch.cat((vectors / vectors.norm(dim=-1, keepdim=True), axes, -axes))


@contextmanager
def double_precision() -> Iterator[None]:
    """e3nn builds its matrices in torch's default type; equibit must not depend on it."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def random_rotations(count: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    with double_precision():
        return o3.rand_matrix(count)


@pytest.mark.parametrize("degree", DEGREES)
def test_harmonics_equal_e3nn(degree: int) -> None:
    directions = random_directions(50)
    expected = o3.spherical_harmonics(
        degree, to_e3nn(directions), normalize=False, normalization="integral"
    )
    torch.testing.assert_close(
        spherical_harmonics(degree, directions), expected, rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("degree", DEGREES)
def test_harmonics_are_orthonormal(degree: int) -> None:
    """Gauss-Legendre × uniform quadrature is exact for products of two harmonics up to ℓ = 4."""
    z, w = (torch.tensor(v) for v in np.polynomial.legendre.leggauss(10))
    phi = torch.arange(12, dtype=torch.float64) * (2 * math.pi / 12)
    rho = (1 - z * z).sqrt()
    points = torch.stack(
        (
            rho[:, None] * phi.cos(),
            rho[:, None] * phi.sin(),
            z[:, None].expand(-1, phi.numel()),
        ),
        -1,
    )
    values = spherical_harmonics(degree, points)
    overlaps = torch.einsum("zpm,zpn,z->mn", values, values, w) * (2 * math.pi / phi.numel())
    torch.testing.assert_close(
        overlaps, torch.eye(2 * degree + 1, dtype=torch.float64), rtol=0, atol=1e-13
    )


def test_first_degree_is_y_z_x() -> None:
    direction = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    expected = math.sqrt(3 / (4 * math.pi)) * torch.tensor([0.0, 0.8, 0.6], dtype=torch.float64)
    torch.testing.assert_close(spherical_harmonics(1, direction), expected)


def test_unknown_degree_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 to 4"):
        spherical_harmonics(MAX_DEGREE + 1, random_directions(1))


@pytest.mark.parametrize("degree", DEGREES)
def test_wigner_matrices_equal_e3nn(degree: int) -> None:
    rotations = random_rotations(10)
    rotations[5:] *= -1  # improper ones
    renamed = rotations[:, AXES][..., AXES]
    with double_precision():
        expected = o3.Irreps([(1, (degree, (-1) ** degree))]).D_from_matrix(renamed)
    torch.testing.assert_close(wigner_d(degree, rotations), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("improper", [False, True])
@pytest.mark.parametrize("degree", DEGREES)
def test_harmonics_turn_with_wigner_matrices(degree: int, improper: bool) -> None:
    """Y(R r) = D(R) Y(r); D(R) is orthogonal and D(R S) = D(R) D(S)."""
    rotations = random_rotations(8, seed=1) * (-1.0 if improper else 1.0)
    directions = random_directions(20)
    matrices = wigner_d(degree, rotations)
    turned = spherical_harmonics(degree, directions @ rotations.mT)
    expected = spherical_harmonics(degree, directions) @ matrices.mT
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-12)
    identity = torch.eye(2 * degree + 1, dtype=torch.float64).expand_as(matrices)
    torch.testing.assert_close(matrices @ matrices.mT, identity, rtol=0, atol=1e-12)
    product = wigner_d(degree, rotations[0] @ rotations[1])
    torch.testing.assert_close(product, matrices[0] @ matrices[1], rtol=0, atol=1e-12)


TRIPLES = [
    (a, b, c)
    for a in range(4)
    for b in range(4)
    for c in range(4)
    if abs(a - b) <= c <= a + b and (a + b + c) % 2 == 0
]


@pytest.mark.parametrize(("first", "second", "out"), TRIPLES)
def test_couplings_are_equivariant_and_normalised(first: int, second: int, out: int) -> None:
    """C (D_1 u ⊗ D_2 v) = D_out C (u ⊗ v), and Σ_mn C_mnk² = 1."""
    tensor = clebsch_gordan(first, second, out)
    torch.testing.assert_close(
        tensor.square().sum((0, 1)), torch.ones(2 * out + 1, dtype=torch.float64)
    )
    rotation = -random_rotations(1, seed=2)[0]
    turned = torch.einsum(
        "mnk,ma,nb->abk", tensor, wigner_d(first, rotation), wigner_d(second, rotation)
    )
    expected = torch.einsum("abl,lk->abk", tensor, wigner_d(out, rotation).mT)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-12)
