"""Atoms that stay float in a pass of training (Degree-Quant, Tailor et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from equibit.networks.geometry import Geometry
from equibit.networks.graph import Graph
from equibit.quantization.recipes import Protection

MOST_NEIGHBOURS = 128  # beyond it, numbers of neighbours count as equal


class DegreeProtection:
    """Draws each atom with p_i = p_min + (p_max − p_min) · #{j : deg_j ≤ deg_i} / n.

    deg_i counts the neighbours within the cutoff and j runs over the n atoms of the same structure.
    Where all degrees are equal, as in a molecule smaller than the cutoff, p_i = p_max for all.
    """

    def __init__(self, spec: Protection) -> None:
        self.spec = spec

    def __call__(self, graph: Graph, geometry: Geometry) -> Tensor:
        """A fresh mask, True for atoms that stay float. Shape: bool [*atoms]."""
        probability = self.probabilities(graph, geometry)
        return (torch.rand_like(probability) < probability) & graph.atom_mask

    def probabilities(self, graph: Graph, geometry: Geometry) -> Tensor:
        """p_i. Shape: [*atoms]."""
        near = (geometry.envelope.detach() > 0).to(torch.get_default_dtype())
        degree = graph.aggregate(near).round().long().clamp(max=MOST_NEIGHBOURS)
        bins = torch.arange(MOST_NEIGHBOURS + 1, device=degree.device)
        # Of each structure, how many atoms have at most so many neighbours: no pair is compared.
        at_most = (degree.unsqueeze(-1) <= bins).to(near.dtype)
        counts = graph.atom_structures(graph.per_structure(at_most))
        ranked = counts.expand(*degree.shape, -1).gather(-1, degree.unsqueeze(-1)).squeeze(-1)
        share = ranked / counts[..., -1]
        return self.spec.least + (self.spec.most - self.spec.least) * share
