"""Two layouts of the same graph, so that one network serves molecules and crystals alike.

``DenseGraph`` pads molecules to a common size and lets every atom see every other: gathering is
broadcasting, summing over neighbours is a reduction, which compiles to tight loops. ``SparseGraph``
lists the directed edges and serves periodic and large systems. A network calls the same methods
on either and never asks which it was given.

Convention: edge (i, j) has centre (receiver) i, neighbour (sender) j and vector r_ij = r_j − r_i.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Graph(ABC):
    """Who sees whom, and which species each atom is.

    Shapes below write ``*atoms`` for [structures, atoms] (dense) or [atoms] (sparse), and ``*edges``
    for [structures, atoms, atoms] or [edges]. Receiver and sender values may have size-1 axes that
    broadcast against edge values.
    """

    species: Tensor  # int64 [*atoms], index into the network's elements; 0 on padding
    atom_mask: Tensor  # bool [*atoms], False on padding

    @abstractmethod
    def receivers(self, x: Tensor) -> Tensor:
        """Value of atom i on every edge (i, j). Shape: [*atoms, ...] → [*edges, ...]."""

    @abstractmethod
    def senders(self, x: Tensor) -> Tensor:
        """Value of atom j on every edge (i, j). Shape: [*atoms, ...] → [*edges, ...]."""

    @abstractmethod
    def aggregate(self, messages: Tensor) -> Tensor:
        """Σ_j m_ij. Shape: [*edges, ...] → [*atoms, ...]."""

    @abstractmethod
    def aggregate_senders(self, messages: Tensor) -> Tensor:
        """Σ_i m_ij. Shape: [*edges, ...] → [*atoms, ...]."""

    @abstractmethod
    def per_structure(self, x: Tensor) -> Tensor:
        """Sum over the atoms of each structure. Shape: [*atoms, ...] → [structures, ...]."""

    @abstractmethod
    def edge_structures(self, x: Tensor) -> Tensor:
        """Value of its structure on every edge. Shape: [structures, ...] → [*edges, ...]."""

    @abstractmethod
    def atom_structures(self, x: Tensor) -> Tensor:
        """Value of its structure on every atom. Shape: [structures, ...] → [*atoms, ...]."""

    @abstractmethod
    def per_structure_edges(self, x: Tensor) -> Tensor:
        """Sum over the edges of each structure. Shape: [*edges, ...] → [structures, ...]."""

    def forces(self, edge_gradients: Tensor) -> Tensor:
        """F_i = Σ_j (∂E/∂r_ij − ∂E/∂r_ji). Shape: [*edges, 3] → [*atoms, 3]."""
        return self.aggregate(edge_gradients) - self.aggregate_senders(edge_gradients)

    def virials(self, edge_vectors: Tensor, edge_gradients: Tensor) -> Tensor:
        """∂E/∂ε = Σ_ij r_ij ⊗ ∂E/∂r_ij, symmetrised. Shape: [structures, 3, 3]."""
        virials = self.per_structure_edges(
            edge_vectors.unsqueeze(-1) * edge_gradients.unsqueeze(-2)
        )
        return 0.5 * (virials + virials.transpose(-1, -2))


@dataclass
class DenseGraph(Graph):
    """Molecules padded to one size; every atom is a neighbour of every other, the cutoff decides.

    Attributes:
        species: Shape: [structures, atoms].
        atom_mask: Shape: [structures, atoms].
        padding_distance: where masked pairs are put, beyond every cutoff, so that they stay finite.
    """

    species: Tensor
    atom_mask: Tensor
    padding_distance: float = 1.0e3

    def edge_vectors(self, positions: Tensor) -> Tensor:
        """r_ij = r_j − r_i, far away for masked pairs. Shape: [*atoms, 3] → [*edges, 3]."""
        vectors = positions.unsqueeze(1) - positions.unsqueeze(2)
        n_atoms = positions.shape[1]
        pairs = self.atom_mask.unsqueeze(1) & self.atom_mask.unsqueeze(2)
        pairs = pairs & ~torch.eye(n_atoms, dtype=torch.bool, device=positions.device)
        far = torch.full_like(vectors[..., :1], self.padding_distance)
        far = torch.nn.functional.pad(far, (0, 2))
        return torch.where(pairs.unsqueeze(-1), vectors, far)

    def receivers(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2)

    def senders(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1)

    def aggregate(self, messages: Tensor) -> Tensor:
        return messages.sum(2)

    def aggregate_senders(self, messages: Tensor) -> Tensor:
        return messages.sum(1)

    def per_structure(self, x: Tensor) -> Tensor:
        mask = self.atom_mask.reshape(self.atom_mask.shape + (1,) * (x.ndim - 2))
        return torch.where(mask, x, 0.0).sum(1)

    def edge_structures(self, x: Tensor) -> Tensor:
        return x[:, None, None]

    def atom_structures(self, x: Tensor) -> Tensor:
        return x[:, None]

    def per_structure_edges(self, x: Tensor) -> Tensor:
        return x.sum((1, 2))


@dataclass
class SparseGraph(Graph):
    """A list of directed edges over any number of structures, with periodic images.

    Attributes:
        species: Shape: [atoms].
        structure_index: structure of each atom, ascending. Shape: [atoms].
        receiver_index, sender_index: ends of each edge. Shape: [edges].
        n_structures: number of structures.
    """

    species: Tensor
    structure_index: Tensor
    receiver_index: Tensor
    sender_index: Tensor
    n_structures: int

    @property
    def atom_mask(self) -> Tensor:  # type: ignore[override]
        return torch.ones_like(self.species, dtype=torch.bool)

    def receivers(self, x: Tensor) -> Tensor:
        return x[self.receiver_index]

    def senders(self, x: Tensor) -> Tensor:
        return x[self.sender_index]

    def aggregate(self, messages: Tensor) -> Tensor:
        return self._sum(messages, self.receiver_index, self.species.shape[0])

    def aggregate_senders(self, messages: Tensor) -> Tensor:
        return self._sum(messages, self.sender_index, self.species.shape[0])

    def per_structure(self, x: Tensor) -> Tensor:
        return self._sum(x, self.structure_index, self.n_structures)

    def edge_structures(self, x: Tensor) -> Tensor:
        return x[self.structure_index[self.receiver_index]]

    def atom_structures(self, x: Tensor) -> Tensor:
        return x[self.structure_index]

    def per_structure_edges(self, x: Tensor) -> Tensor:
        return self._sum(x, self.structure_index[self.receiver_index], self.n_structures)

    @staticmethod
    def _sum(values: Tensor, index: Tensor, size: int) -> Tensor:
        zeros = values.new_zeros((size, *values.shape[1:]))
        return zeros.index_add(0, index, values)
