"""Coupling tensors of real spherical harmonics, without torch."""

from __future__ import annotations

from functools import cache

import numpy as np

from equibit.structures.structure import FloatArray

_NODES = 8  # per direction; exact for products of three harmonics of degree 3


@cache
def coupling(degree_1: int, degree_2: int, degree_out: int) -> FloatArray:
    """C with Σ_mn C_mnk² = 1 for each k, for even ℓ_1 + ℓ_2 + ℓ_out and 1 ≤ ℓ ≤ 3.

    C_mnk ∝ ∫ Y_m Y_n Y_k dΩ (Gaunt), which by the Wigner-Eckart theorem is the Clebsch-Gordan tensor
    of ``networks.harmonics`` (the sign included).

    Shape: → [2ℓ_1+1, 2ℓ_2+1, 2ℓ_out+1].
    """
    points, weights = _sphere()
    first, second, out = (_harmonics(degree, points) for degree in (degree_1, degree_2, degree_out))
    gaunt = np.einsum("p,pm,pn,pk->mnk", weights, first, second, out)
    gaunt[np.abs(gaunt) < 1e-12 * np.abs(gaunt).max()] = 0.0
    return gaunt / np.sqrt((gaunt**2).sum((0, 1)))


def coupled_paths(max_degree: int) -> list[tuple[int, int, int]]:
    """(ℓ_1, ℓ_2, ℓ_out) of even sum with 1 ≤ ℓ ≤ ``max_degree``, in the order of the weights."""
    degrees = range(1, max_degree + 1)
    return [
        (l1, l2, l3)
        for l1 in degrees
        for l2 in degrees
        for l3 in degrees
        if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0
    ]


def _sphere() -> tuple[FloatArray, FloatArray]:
    """Quadrature points and weights. Shape: [points, 3], [points]."""
    z, weights = np.polynomial.legendre.leggauss(_NODES)
    phi = np.arange(2 * _NODES) * (np.pi / _NODES)
    radius = np.sqrt(1 - z**2)[:, None]
    points = np.stack(
        (
            radius * np.cos(phi),
            radius * np.sin(phi),
            np.broadcast_to(z[:, None], (_NODES, phi.size)),
        ),
        -1,
    )
    return points.reshape(-1, 3), np.repeat(weights, phi.size)


def _harmonics(degree: int, points: FloatArray) -> FloatArray:
    """Real harmonics, m = −ℓ … ℓ, of one norm for all m. Shape: [points, 3] → [points, 2ℓ+1]."""
    x, y, z = points.T
    values = {
        1: lambda: (y, z, x),
        2: lambda: (
            np.sqrt(3) * x * y,
            np.sqrt(3) * y * z,
            (3 * z**2 - 1) / 2,
            np.sqrt(3) * x * z,
            np.sqrt(3) * (x**2 - y**2) / 2,
        ),
        3: lambda: (
            np.sqrt(5 / 8) * y * (3 * x**2 - y**2),
            np.sqrt(15) * x * y * z,
            np.sqrt(3 / 8) * y * (5 * z**2 - 1),
            z * (5 * z**2 - 3) / 2,
            np.sqrt(3 / 8) * x * (5 * z**2 - 1),
            np.sqrt(15) * z * (x**2 - y**2) / 2,
            np.sqrt(5 / 8) * x * (x**2 - 3 * y**2),
        ),
    }[degree]()
    return np.stack(values, -1)
