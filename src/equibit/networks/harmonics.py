"""Real spherical harmonics, Wigner matrices and Clebsch-Gordan tensors in one convention.

Components run m = −ℓ … ℓ in the standard real basis without the Condon-Shortley sign, so that
Y_1 ∝ (y, z, x) as in So3krates. A rotation R acts as Y_ℓ(R r) = D_ℓ(R) Y_ℓ(r); improper R follow
the natural parity (−1)^ℓ.
"""

from __future__ import annotations

from functools import cache
from math import pi, sqrt

import torch
from torch import Tensor

MAX_DEGREE = 4


def spherical_harmonics(degree: int, unit_vectors: Tensor) -> Tensor:
    """Orthonormal real harmonics Y_ℓ, ∫ Y_ℓm Y_ℓm' dΩ = δ_mm'.

    Shape: [..., 3] → [..., 2ℓ+1].

    Raises:
        ValueError: ℓ outside 0…4.
    """
    x, y, z = unit_vectors.unbind(-1)
    if degree == 0:
        return torch.full_like(x, 0.5 / sqrt(pi)).unsqueeze(-1)
    if degree == 1:
        return sqrt(3 / (4 * pi)) * torch.stack((y, z, x), -1)
    components: tuple[Tensor, ...]
    if degree == 2:
        components = (
            0.5 * sqrt(15 / pi) * x * y,
            0.5 * sqrt(15 / pi) * y * z,
            0.25 * sqrt(5 / pi) * (3 * z * z - 1),
            0.5 * sqrt(15 / pi) * x * z,
            0.25 * sqrt(15 / pi) * (x * x - y * y),
        )
    elif degree == 3:
        components = (
            0.25 * sqrt(35 / (2 * pi)) * y * (3 * x * x - y * y),
            0.5 * sqrt(105 / pi) * x * y * z,
            0.25 * sqrt(21 / (2 * pi)) * y * (5 * z * z - 1),
            0.25 * sqrt(7 / pi) * z * (5 * z * z - 3),
            0.25 * sqrt(21 / (2 * pi)) * x * (5 * z * z - 1),
            0.25 * sqrt(105 / pi) * z * (x * x - y * y),
            0.25 * sqrt(35 / (2 * pi)) * x * (x * x - 3 * y * y),
        )
    elif degree == 4:
        x2, y2, z2 = x * x, y * y, z * z
        components = (
            0.75 * sqrt(35 / pi) * x * y * (x2 - y2),
            0.75 * sqrt(35 / (2 * pi)) * y * z * (3 * x2 - y2),
            0.75 * sqrt(5 / pi) * x * y * (7 * z2 - 1),
            0.75 * sqrt(5 / (2 * pi)) * y * z * (7 * z2 - 3),
            3 / 16 * sqrt(1 / pi) * (35 * z2 * z2 - 30 * z2 + 3),
            0.75 * sqrt(5 / (2 * pi)) * x * z * (7 * z2 - 3),
            0.375 * sqrt(5 / pi) * (x2 - y2) * (7 * z2 - 1),
            0.75 * sqrt(35 / (2 * pi)) * x * z * (x2 - 3 * y2),
            3 / 16 * sqrt(35 / pi) * (x2 * (x2 - 3 * y2) - y2 * (3 * x2 - y2)),
        )
    else:
        raise ValueError(f"spherical harmonics of degree {degree}: expected 0 to {MAX_DEGREE}")
    return torch.stack(components, -1)


@cache
def clebsch_gordan(degree_1: int, degree_2: int, degree_out: int) -> Tensor:
    """Real coupling tensor C with Σ_mn C_mnk² = 1 for each k, in float64.

    e3nn's tensor (Frobenius norm 1) times √(2ℓ_out+1). e3nn orders the same components with the
    axes cyclically renamed, which leaves the tensor unchanged.

    Shape: [2ℓ_1+1, 2ℓ_2+1, 2ℓ_out+1].
    """
    from e3nn.o3 import wigner_3j

    return wigner_3j(degree_1, degree_2, degree_out, dtype=torch.float64) * sqrt(2 * degree_out + 1)


def wigner_d(degree: int, rotations: Tensor) -> Tensor:
    """D_ℓ(R) in this module's basis, for proper and improper R, by D_ℓ = Cᵀ (D_1 ⊗ D_{ℓ−1}) C.

    Shape: [..., 3, 3] → [..., 2ℓ+1, 2ℓ+1].
    """
    if degree == 0:
        return torch.ones_like(rotations[..., :1, :1])
    order = [1, 2, 0]
    first = rotations[..., order, :][..., :, order]
    result = first
    for current in range(2, degree + 1):
        coupling = clebsch_gordan(1, current - 1, current).to(rotations).flatten(0, 1)
        pairs = first[..., :, None, :, None] * result[..., None, :, None, :]
        result = coupling.T @ pairs.flatten(-4, -3).flatten(-2) @ coupling
    return result
