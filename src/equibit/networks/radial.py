"""Radial functions that are exactly cubic B-splines, so that an engine can look them up."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor, nn

SMOOTH_ORDERS = 4  # Bessel orders beyond which filters are damped


def cubic_b_splines(distances: Tensor, cutoff: float, n_splines: int) -> Tensor:
    """Uniform cubic B-splines B_k(d) = β(d/h − k + 1), h = r_c/(n − 3), k = 0 … n−1.

    β(u) = [(2 − |u|)₊³ − 4(1 − |u|)₊³]/6 is C² and four splines overlap at every d < r_c.

    Shape: [*edges] → [*edges, n].
    """
    centres = torch.arange(-1, n_splines - 1, dtype=distances.dtype, device=distances.device)
    u = (distances.unsqueeze(-1) * ((n_splines - 3) / cutoff) - centres).abs()
    outer, inner = (2 - u).clamp(min=0), (1 - u).clamp(min=0)
    return (outer**3 - 4 * inner**3) / 6


class SplineBasis(nn.Module):
    """K smooth radial functions, each an exact cubic B-spline: g(d) = Mᵀ B(d).

    M projects the functions sin(kπ d/r_c)/d, k = 1 … K (spherical Bessel functions of degree 0,
    with root mean square 1/(1 + (k/4)²)) onto n splines by least squares. Damping the high orders
    is a prior for smooth filters: it shrinks their share at the start and the effect of each step
    of training. Filters are linear in g, hence B-splines themselves: the trained function equals
    its table, is C², and costs four taps.

    Attributes:
        projection: M. Shape: [n_splines, n_functions].
    """

    projection: Tensor

    def __init__(self, cutoff: float, n_functions: int, n_splines: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.n_splines = n_splines
        grid = torch.linspace(0.3, cutoff, 50 * n_splines, dtype=torch.float64)
        orders = torch.arange(1, n_functions + 1, dtype=torch.float64)
        functions = torch.sin(orders * pi * grid.unsqueeze(-1) / cutoff) / grid.unsqueeze(-1)
        functions = functions / functions.square().mean(0).sqrt()
        functions = functions / (1 + (orders / SMOOTH_ORDERS) ** 2)
        design = cubic_b_splines(grid, cutoff, n_splines)
        # A little curvature penalty settles the splines that the grid does not reach.
        curvature = torch.diff(torch.eye(n_splines, dtype=torch.float64), n=2, dim=0)
        system = torch.cat((design, 1e-4 * curvature))
        target = torch.cat((functions, functions.new_zeros(n_splines - 2, n_functions)))
        self.register_buffer("projection", torch.linalg.lstsq(system, target).solution)

    def forward(self, distances: Tensor) -> Tensor:
        """Shape: [*edges] → [*edges, n_functions]."""
        splines = cubic_b_splines(distances, self.cutoff, self.n_splines)
        return splines @ self.projection.to(distances.dtype)


class RadialFilter(nn.Module):
    """φ(d) = Wᵀ g(d), one B-spline per output channel. Shape: [*edges, K] → [*edges, out].

    Attributes:
        weight: Shape: [out, K].
    """

    def __init__(self, n_functions: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, n_functions))
        nn.init.normal_(self.weight, std=n_functions**-0.5)

    def forward(self, basis: Tensor) -> Tensor:
        return nn.functional.linear(basis, self.weight)

    def spline_coefficients(self, basis: SplineBasis) -> Tensor:
        """C = M Wᵀ with φ(d) = Cᵀ B(d), in float64: the engine's table. Shape: [n_splines, out]."""
        return basis.projection.double() @ self.weight.double().T
