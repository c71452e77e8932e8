"""Distances, cutoff functions and harmonics of all edges, computed once for all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from equibit.networks.harmonics import spherical_harmonics


@dataclass
class Geometry:
    """What a network sees of the edges.

    Attributes:
        distances: d_ij in Å. Shape: [*edges].
        envelope: cutoff function f_c(d_ij), exactly 0 beyond the cutoff. Shape: [*edges].
        harmonics: orthonormal Y_ℓ(r̂_ij) by degree. Shape: [*edges, 2ℓ+1].
    """

    distances: Tensor
    envelope: Tensor
    harmonics: dict[int, Tensor]


def cosine_envelope(distances: Tensor, cutoff: float) -> Tensor:
    """f_c = ½(cos(πd/r_c) + 1) for d < r_c, else 0 (Frank et al. 2022)."""
    return torch.where(distances < cutoff, 0.5 * (torch.cos(pi * distances / cutoff) + 1), 0.0)


def polynomial_envelope(distances: Tensor, cutoff: float, power: int = 6) -> Tensor:
    """1 − ½(p+1)(p+2)x^p + p(p+2)x^{p+1} − ½p(p+1)x^{p+2}, x = d/r_c; C² at the cutoff.

    Source: Gasteiger et al. 2020 (DimeNet), Eq. 8.
    """
    x = (distances / cutoff).clamp(max=1.0)
    p = power
    value = 1 - x**p * (0.5 * (p + 1) * (p + 2) - x * (p * (p + 2) - x * (0.5 * p * (p + 1))))
    return torch.where(distances < cutoff, value, 0.0)


ENVELOPES = {"cosine": cosine_envelope, "polynomial": polynomial_envelope}


def edge_geometry(
    edge_vectors: Tensor,
    cutoff: float,
    degrees: Sequence[int],
    envelope: str,
    dtype: torch.dtype,
) -> Geometry:
    """Geometry in ``dtype``, each number rounded once from float64 edge vectors.

    Rounding only here keeps the invariants of a rotated copy equal to the last bit, which keeps
    low-bit rounding downstream from flipping.

    Shape: edge_vectors [*edges, 3], r_ij in Å.
    """
    distances = edge_vectors.norm(dim=-1)
    unit_vectors = edge_vectors / distances.unsqueeze(-1)
    return Geometry(
        distances=distances.to(dtype),
        envelope=ENVELOPES[envelope](distances, cutoff).to(dtype),
        harmonics={
            degree: spherical_harmonics(degree, unit_vectors).to(dtype) for degree in degrees
        },
    )
