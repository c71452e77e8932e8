"""From structures to batched graphs, and from a network to energies, forces and stresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from equibit.networks.base import AtomisticNetwork
from equibit.networks.context import Context
from equibit.networks.frames import canonical_orientation, local_frames
from equibit.networks.geometry import edge_geometry
from equibit.networks.graph import DenseGraph, Graph, SparseGraph
from equibit.networks.harmonics import wigner_d
from equibit.structures import PotentialInfo, Prediction, Structure
from equibit.structures.checks import check_cells, species_index
from equibit.structures.neighbors import check_distinct_positions, neighbor_list

DENSE_LIMIT = 32  # atoms; beyond it, all pairs cost more than the list of neighbours


@dataclass
class Batch:
    """Structures on their way through a network.

    Attributes:
        graph: dense or sparse graph.
        edge_vectors: r_ij in Å, float64. Shape: [*edges, 3].
        orientation: proper rotation of each structure into its canonical orientation, float64; its
            columns are the canonical axes. Shape: [structures, 3, 3].
        frames: local frames of the atoms in that orientation, or None. Shape: [*atoms, 3, 3].
    """

    graph: Graph
    edge_vectors: Tensor
    orientation: Tensor | None = None
    frames: Tensor | None = None


def build_graph(
    structures: Sequence[Structure],
    elements: Sequence[int],
    cutoff: float,
    device: torch.device | str = "cpu",
) -> tuple[Graph, Tensor]:
    """A dense graph for small molecules, else a sparse one, and the edge vectors r_ij in Å.

    Raises:
        ModelError: unknown element.
        StructureError: coinciding atoms.
    """
    sizes = [len(structure) for structure in structures]
    if max(sizes) <= DENSE_LIMIT and not any(s.periodic for s in structures):
        return _dense_graph(structures, elements, device)
    return _sparse_graph(structures, elements, cutoff, device)


def _dense_graph(
    structures: Sequence[Structure], elements: Sequence[int], device: torch.device | str
) -> tuple[DenseGraph, Tensor]:
    shape = (len(structures), max(len(structure) for structure in structures))
    species, mask = np.zeros(shape, np.int64), np.zeros(shape, bool)
    positions = np.zeros((*shape, 3))
    for row, structure in enumerate(structures):
        check_distinct_positions(structure)
        n_atoms = len(structure)
        species[row, :n_atoms] = species_index(structure, elements)
        mask[row, :n_atoms] = True
        positions[row, :n_atoms] = structure.positions
    graph = DenseGraph(torch.from_numpy(species).to(device), torch.from_numpy(mask).to(device))
    return graph, graph.edge_vectors(torch.from_numpy(positions).to(device))


def _sparse_graph(
    structures: Sequence[Structure],
    elements: Sequence[int],
    cutoff: float,
    device: torch.device | str,
) -> tuple[SparseGraph, Tensor]:
    species, owner, receivers, senders, vectors = [], [], [], [], []
    offset = 0
    for row, structure in enumerate(structures):
        edges = neighbor_list(structure, cutoff)
        species.append(species_index(structure, elements))
        owner.append(np.full(len(structure), row))
        receivers.append(edges.receivers + offset)
        senders.append(edges.senders + offset)
        vectors.append(edges.vectors)
        offset += len(structure)

    def tensor(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device)

    graph = SparseGraph(
        species=tensor(species),
        structure_index=tensor(owner),
        receiver_index=tensor(receivers),
        sender_index=tensor(senders),
        n_structures=len(structures),
    )
    return graph, tensor(vectors)


def orient(network: AtomisticNetwork, graph: Graph, edge_vectors: Tensor) -> Batch:
    """Rotate each structure into its canonical orientation and attach local frames if needed.

    The orientation only makes floating-point rounding the same for rotated copies; in exact
    arithmetic no result depends on it. Networks that round vectors in the laboratory frame do
    depend on the orientation, which is their flaw to show, so they are left as they come.
    """
    orientation = frames = None
    with torch.no_grad():
        if network.canonical_orientation and not network.uses_lab_frames:
            orientation = canonical_orientation(graph, edge_vectors, network.config.cutoff)
            edge_vectors = rotate_edges(graph, edge_vectors, orientation)
        if network.uses_local_frames:
            frames = local_frames(graph, edge_vectors, network.config.cutoff)
    return Batch(graph, edge_vectors, orientation, frames)


def rotate_edges(graph: Graph, edge_vectors: Tensor, rotations: Tensor) -> Tensor:
    """Row vectors times the rotation of their structure, r Q. Shape: [*edges, 3] → [*edges, 3]."""
    return (edge_vectors.unsqueeze(-2) @ graph.edge_structures(rotations)).squeeze(-2)


def atomic_energies(network: AtomisticNetwork, batch: Batch, edge_vectors: Tensor) -> Tensor:
    """E_i = s_Z ε_i + μ_Z in eV, float64, 0 on padding. Shape: → [*atoms]."""
    geometry = edge_geometry(
        edge_vectors,
        network.config.cutoff,
        network.harmonic_degrees,
        network.envelope,
        network.dtype,
    )
    rotations = None
    if batch.frames is not None:
        rotations = {
            degree: wigner_d(degree, batch.frames).to(network.dtype)
            for degree in network.harmonic_degrees
            if degree > 0
        }
    species = batch.graph.species
    protected = None
    if network.training and network.protection is not None:
        protected = network.protection(batch.graph, geometry)
    raw = network(batch.graph, geometry, Context(species, rotations, protected))
    energies = raw.double() * network.energy_scale[species] + network.energy_shift[species]
    return torch.where(batch.graph.atom_mask, energies, 0.0)


def energies_and_edge_gradients(network: AtomisticNetwork, batch: Batch) -> tuple[Tensor, Tensor]:
    """Atomic energies and ∂E/∂r_ij, differentiable again with respect to the parameters.

    Shape: → [*atoms], [*edges, 3], float64, gradients in the orientation of the batch.
    """

    def total(edge_vectors: Tensor) -> tuple[Tensor, Tensor]:
        energies = atomic_energies(network, batch, edge_vectors)
        return energies.sum(), energies

    gradients, energies = torch.func.grad(total, has_aux=True)(batch.edge_vectors)
    return energies, gradients


def lab_gradients(batch: Batch, gradients: Tensor) -> Tensor:
    """∂E/∂r_ij turned back from the canonical orientation. Shape: [*edges, 3] → [*edges, 3]."""
    if batch.orientation is None:
        return gradients
    return rotate_edges(batch.graph, gradients, batch.orientation.transpose(-1, -2))


class TorchPotential:
    """The ``Potential`` face of a torch network, FP32 or fake-quantised.

    Attributes:
        network: the network, in evaluation mode.
        name: what reports call it.
    """

    def __init__(
        self,
        network: AtomisticNetwork,
        *,
        name: str = "network",
        recipe: str = "fp32",
        batch_size: int = 64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.name = name
        self.recipe = recipe
        self.batch_size = batch_size
        self.device = device

    @property
    def info(self) -> PotentialInfo:
        config = self.network.config
        dtype = str(self.network.dtype).removeprefix("torch.")
        return PotentialInfo(self.name, config.elements, config.cutoff, dtype, self.recipe)

    def compute(
        self, structures: Sequence[Structure], *, forces: bool = True, stress: bool = False
    ) -> list[Prediction]:
        """See ``Potential.compute``."""
        if stress:
            check_cells(structures)
        predictions: list[Prediction] = []
        for start in range(0, len(structures), self.batch_size):
            chunk = structures[start : start + self.batch_size]
            predictions += self._compute_chunk(chunk, forces, stress)
        return predictions

    def _compute_chunk(
        self, structures: Sequence[Structure], forces: bool, stress: bool
    ) -> list[Prediction]:
        config = self.network.config
        graph, edge_vectors = build_graph(structures, config.elements, config.cutoff, self.device)
        batch = orient(self.network, graph, edge_vectors)
        force_parts: list[np.ndarray | None] = [None] * len(structures)
        stresses: list[np.ndarray | None] = [None] * len(structures)
        if forces or stress:
            energies, gradients = energies_and_edge_gradients(self.network, batch)
            gradients = lab_gradients(batch, gradients)
            if forces:
                force_parts = list(_split(graph, graph.forces(gradients), structures))
            if stress:
                virials = graph.virials(edge_vectors, gradients).cpu().numpy()
                volumes = [abs(np.linalg.det(s.cell)) for s in structures if s.cell is not None]
                stresses = [v / volume for v, volume in zip(virials, volumes, strict=True)]
        else:
            with torch.no_grad():
                energies = atomic_energies(self.network, batch, batch.edge_vectors)
        parts = _split(graph, energies, structures)
        return [
            Prediction(float(part.sum()), part, force, stress_part)
            for part, force, stress_part in zip(parts, force_parts, stresses, strict=True)
        ]


def _split(graph: Graph, values: Tensor, structures: Sequence[Structure]) -> list[np.ndarray]:
    array = values.detach().cpu().numpy()
    sizes = [len(structure) for structure in structures]
    if isinstance(graph, DenseGraph):
        return [row[:size].copy() for row, size in zip(array, sizes, strict=True)]
    return np.split(array, np.cumsum(sizes)[:-1])
