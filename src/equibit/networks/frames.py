"""Axes that turn with the atoms: a local frame per atom, a canonical orientation per structure.

Everything here is float64 and outside the differentiated graph: rounding in a frame needs the
frame's value, not its derivative, and the canonical orientation only fixes floating-point noise.
``docs/quantization.md`` says why the arbitrary axes of symmetric environments do no harm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from equibit.networks.graph import Graph

_GOLDEN = 0.6180339887498949
_MIXING = 0.25  # share of the neighbours' tensors per hop: an atom's own surroundings lead
_TINY = torch.finfo(torch.float64).tiny


def local_frames(graph: Graph, edge_vectors: Tensor, cutoff: float, hops: int = 6) -> Tensor:
    """Right-handed orthonormal axes R_i of every atom, R_i(Q·G) = Q R_i(G) up to flips of axes.

    Eigenvectors of the symmetric tensor M_i + p_i p_iᵀ/‖p_i‖ with

        M_i = Σ_j w_ij r̂_ij r̂_ijᵀ,   p_i = Σ_j w_ij r̂_ij,   w_ij = c(Z_j) (1 − (d/r_c)²)³ e^{−d/Å},

    after ``hops`` exchanges T_i ← T_i + ¼ Σ_j w_ij T_j / Σ_j w_ij of T = (M, p), which let the
    frame see what the messages of a deep network bring from beyond the cutoff: an atom whose one
    neighbour belongs to a bent molecule has a bent environment. The weights c(Z) between 1 and 2
    tell species apart. The local z axis is the eigenvector whose eigenvalue lies farthest from the
    others, so that a doubly degenerate pair is always x and y.

    Axes within a degenerate pair or triple, and all signs, are arbitrary. An atom without
    neighbours has the laboratory axes, where its vanishing vectors do not matter.

    Args:
        graph: dense or sparse.
        edge_vectors: r_ij in Å. Shape: [*edges, 3].
        cutoff: r_c in Å; edges at or beyond it have no weight.
        hops: exchanges between neighbours.

    Returns:
        R_i, columns are the axes, det = +1, float64. Shape: [*atoms, 3, 3].
    """
    with torch.no_grad():
        weights, unit_vectors = _weighted_directions(graph, edge_vectors, cutoff)
        tensors = graph.aggregate(weights[..., None, None] * _moments(unit_vectors))
        totals = graph.receivers(graph.aggregate(weights))
        shares = (_MIXING * weights / totals.clamp_min(_TINY))[..., None, None]
        for _ in range(hops):
            tensors = tensors + graph.aggregate(shares * graph.senders(tensors))
        polar, moment = tensors[..., 0, :], tensors[..., 1:, :]
        length = polar.norm(dim=-1)[..., None, None].clamp_min(_TINY)
        moment = moment + polar.unsqueeze(-1) * (polar.unsqueeze(-2) / length)
        values, axes = torch.linalg.eigh(moment)
        lowest_alone = values[..., 1] - values[..., 0] > values[..., 2] - values[..., 1]
        z = torch.where(lowest_alone.unsqueeze(-1), axes[..., 0], axes[..., 2])
        x = axes[..., 1]
        return torch.stack((x, torch.linalg.cross(z, x), z), -1)


def canonical_orientation(graph: Graph, edge_vectors: Tensor, cutoff: float) -> Tensor:
    """One proper rotation per structure, O(Q·G) = Q O(G), from sums over its edges.

    Columns are the eigenvectors of Σ_ij c(Z_i) c(Z_j) w_ij r̂_ij r̂_ijᵀ. Each sign makes the polar sum
    Σ_i n_i c(Z_i) p_i·e positive (n_i = Σ_j w_ij, p_i = Σ_j w_ij r̂_ij), or Σ_i n_i (p_i·e)³ where the
    first vanishes; the axis with the smallest sum completes a right-handed system. Symmetric
    structures, for which these sums leave a choice, get any of the choices.

    Turning the edges into these axes in float64 (``edge_vectors @ O``) makes all rotated copies of
    a structure the same input up to 1e-15, and after rounding to float32 the same bits. In exact
    arithmetic nothing depends on it.

    Args:
        graph: dense or sparse.
        edge_vectors: r_ij in Å. Shape: [*edges, 3].
        cutoff: r_c in Å; edges at or beyond it have no weight.

    Returns:
        Columns are the canonical axes, det = +1, float64. Shape: [structures, 3, 3].
    """
    with torch.no_grad():
        weights, unit_vectors = _weighted_directions(graph, edge_vectors, cutoff)
        species_weights = _species_weights(graph.species)
        pair_weights = weights * graph.receivers(species_weights)
        moments = _moments(unit_vectors)[..., 1:, :]
        tensor = graph.per_structure_edges(pair_weights[..., None, None] * moments)
        _, axes = torch.linalg.eigh(tensor)

        polar = graph.aggregate(weights.unsqueeze(-1) * unit_vectors)
        counts = graph.aggregate(weights)
        along = (polar.unsqueeze(-2) @ graph.atom_structures(axes)).squeeze(-2)
        first = graph.per_structure((counts * species_weights).unsqueeze(-1) * along)
        third = graph.per_structure(counts.unsqueeze(-1) * along**3)
        size = graph.per_structure(counts * along.abs().amax(-1)).unsqueeze(-1)
        sums = torch.where(first.abs() > 1e-6 * size, first, third)
        axes = axes * torch.where(sums < 0, -1.0, 1.0).unsqueeze(-2)
        weakest = torch.nn.functional.one_hot(sums.abs().argmin(-1), 3).bool()
        handedness = torch.linalg.det(axes).sign().unsqueeze(-1)
        return axes * torch.where(weakest, handedness, 1.0).unsqueeze(-2)


def _species_weights(species: Tensor) -> Tensor:
    """Distinct numbers from 1 to 2 for species 0, 1, 2 …, well apart for any count."""
    return 1 + torch.frac((species + 1).double() * _GOLDEN)


def _weighted_directions(
    graph: Graph, edge_vectors: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    """w_ij and r̂_ij in float64. Shape: [*edges], [*edges, 3]."""
    vectors = edge_vectors.double()
    distances = vectors.norm(dim=-1).clamp_min(_TINY)
    smooth = (1 - (distances / cutoff).square()).clamp_min(0) ** 3 * torch.exp(-distances)
    weights = smooth * graph.senders(_species_weights(graph.species))
    return weights, vectors / distances.unsqueeze(-1)


def _moments(unit_vectors: Tensor) -> Tensor:
    """r̂ above r̂ r̂ᵀ. Shape: [..., 3] → [..., 4, 3]."""
    products = unit_vectors.unsqueeze(-1) * unit_vectors.unsqueeze(-2)
    return torch.cat((unit_vectors.unsqueeze(-2), products), -2)
