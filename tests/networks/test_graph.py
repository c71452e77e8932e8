"""Both layouts describe the same graph, and one network says the same on either."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from equibit.evaluation.validation import probe_molecules
from equibit.networks.base import AtomisticNetwork
from equibit.networks.equivariant_transformer import (
    EquivariantTransformer,
    EquivariantTransformerConfig,
)
from equibit.networks.graph import DenseGraph, Graph, SparseGraph
from equibit.networks.potential import Batch, energies_and_edge_gradients
from equibit.networks.so3krates import So3krates, So3kratesConfig
from equibit.structures import Structure

ELEMENTS = (1, 6, 8)
CUTOFF = 3.0  # shorter than the molecules, so that the sparse graph leaves pairs out

MOLECULES = [s for s in probe_molecules(ELEMENTS).values() if len(s) <= 12] + [
    Structure(np.array([8]), np.zeros((1, 3)))
]

NETWORKS: dict[str, Callable[[], AtomisticNetwork]] = {
    "so3krates": lambda: So3krates(
        So3kratesConfig(
            elements=ELEMENTS, cutoff=CUTOFF, features=12, layers=2, heads=2, radial_basis=6
        )
    ),
    "equivariant_transformer": lambda: EquivariantTransformer(
        EquivariantTransformerConfig(
            elements=ELEMENTS,
            cutoff=CUTOFF,
            irreps="8x0e+8x1o+8x2e",
            layers=2,
            heads=2,
            radial_functions=6,
            splines=12,
        )
    ),
}


def dense_graph(structures: list[Structure], extra_padding: int = 0) -> tuple[DenseGraph, Tensor]:
    shape = (len(structures), max(map(len, structures)) + extra_padding)
    species = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
    positions = torch.zeros(*shape, 3, dtype=torch.float64)
    for row, structure in enumerate(structures):
        n_atoms = len(structure)
        species[row, :n_atoms] = torch.tensor(np.searchsorted(ELEMENTS, structure.numbers))
        mask[row, :n_atoms] = True
        positions[row, :n_atoms] = torch.tensor(structure.positions)
    return DenseGraph(species, mask), positions


def sparse_graph(structures: list[Structure], cutoff: float) -> tuple[SparseGraph, Tensor]:
    """Edges by brute force over all pairs."""
    numbers = np.concatenate([s.numbers for s in structures])
    owner = np.repeat(np.arange(len(structures)), [len(s) for s in structures])
    positions = np.concatenate([s.positions for s in structures])
    vectors = positions[None, :] - positions[:, None]
    near = (owner[:, None] == owner) & (np.linalg.norm(vectors, axis=-1) < cutoff)
    np.fill_diagonal(near, False)
    receivers, senders = np.nonzero(near)
    graph = SparseGraph(
        species=torch.tensor(np.searchsorted(ELEMENTS, numbers)),
        structure_index=torch.tensor(owner),
        receiver_index=torch.tensor(receivers),
        sender_index=torch.tensor(senders),
        n_structures=len(structures),
    )
    return graph, torch.tensor(vectors[near])


def evaluate(
    network: AtomisticNetwork, graph: Graph, edge_vectors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies per structure, forces of the real atoms in order, and virials."""
    energies, gradients = energies_and_edge_gradients(network, Batch(graph, edge_vectors))
    return (
        graph.per_structure(energies).detach(),
        graph.forces(gradients)[graph.atom_mask].detach(),
        graph.virials(edge_vectors, gradients).detach(),
    )


def network_of(name: str, dtype: torch.dtype) -> AtomisticNetwork:
    torch.manual_seed(0)
    network = NETWORKS[name]().to(dtype)
    network.set_scale_shift([1.5, 2.0, 0.5], [-13.6, -1035.0, -2043.0])
    return network


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", NETWORKS)
def test_layouts_give_equal_energies_forces_and_virials(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    network = network_of(name, dtype)
    dense, positions = dense_graph(MOLECULES)
    sparse, edge_vectors = sparse_graph(MOLECULES, CUTOFF)
    assert sparse.receiver_index.numel() < sum(len(s) * (len(s) - 1) for s in MOLECULES)
    expected = evaluate(network, dense, dense.edge_vectors(positions))
    for got, want in zip(evaluate(network, sparse, edge_vectors), expected, strict=True):
        scale = float((want - want.mean()).abs().max()) or 1.0
        torch.testing.assert_close(got, want, rtol=1e-14, atol=tolerance * scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_is_never_seen(name: str) -> None:
    network = network_of(name, torch.float64)
    dense, positions = dense_graph(MOLECULES)
    padded, padded_positions = dense_graph(MOLECULES, extra_padding=5)
    padded_positions[~padded.atom_mask] = 0.7  # inside the molecules
    padded.species[~padded.atom_mask] = 2
    expected = evaluate(network, dense, dense.edge_vectors(positions))
    got = evaluate(network, padded, padded.edge_vectors(padded_positions))
    for value, want in zip(got, expected, strict=True):
        torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_edges_beyond_the_cutoff_change_nothing(name: str) -> None:
    """A neighbour list with a skin gives the same answer."""
    network = network_of(name, torch.float64)
    exact = evaluate(network, *sparse_graph(MOLECULES, CUTOFF))
    skin = evaluate(network, *sparse_graph(MOLECULES, CUTOFF + 1.0))
    for value, want in zip(skin, exact, strict=True):
        torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_edges_at_all(name: str) -> None:
    """An atom without neighbours has its own energy, no force and finite derivatives."""
    network = network_of(name, torch.float64)
    atom = [MOLECULES[-1]]
    dense, positions = dense_graph(atom)
    for graph, edge_vectors in (
        (dense, dense.edge_vectors(positions)),
        sparse_graph(atom, CUTOFF),
    ):
        network.zero_grad()
        energies, gradients = energies_and_edge_gradients(network, Batch(graph, edge_vectors))
        assert not graph.forces(gradients).any()
        (energies.sum() + graph.forces(gradients).square().sum()).backward()
        for parameter in network.parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_methods_agree_edge_by_edge() -> None:
    """Gathers and sums of both layouts on random values."""
    structures = MOLECULES[:3]
    dense, positions = dense_graph(structures)
    sparse, edge_vectors = sparse_graph(structures, cutoff=100.0)
    generator = torch.Generator().manual_seed(0)
    row = sparse.structure_index
    first = torch.tensor([int((row < s).sum()) for s in range(3)])
    column = torch.arange(row.numel()) - first[row]
    i, j = sparse.receiver_index, sparse.sender_index
    edges = row[i], column[i], column[j]

    torch.testing.assert_close(dense.edge_vectors(positions)[edges], edge_vectors)
    atoms = torch.randn(*dense.species.shape, 4, generator=generator)
    per_structure = torch.randn(3, 4, generator=generator)
    flat = atoms[dense.atom_mask]
    edge_shape = (*dense.species.shape, dense.species.shape[1], 4)
    for in_dense, in_sparse in (
        (dense.receivers(atoms), sparse.receivers(flat)),
        (dense.senders(atoms), sparse.senders(flat)),
        (dense.edge_structures(per_structure), sparse.edge_structures(per_structure)),
    ):
        torch.testing.assert_close(in_dense.expand(edge_shape)[edges], in_sparse)

    messages = torch.zeros(edge_shape)
    messages[edges] = torch.randn(i.numel(), 4, generator=generator)
    listed = messages[edges]
    mask = dense.atom_mask
    for in_dense, in_sparse in (
        (dense.aggregate(messages)[mask], sparse.aggregate(listed)),
        (dense.aggregate_senders(messages)[mask], sparse.aggregate_senders(listed)),
        (dense.per_structure_edges(messages), sparse.per_structure_edges(listed)),
        (dense.per_structure(atoms), sparse.per_structure(flat)),
        (
            dense.atom_structures(per_structure).expand_as(atoms)[mask],
            sparse.atom_structures(per_structure),
        ),
    ):
        torch.testing.assert_close(in_dense, in_sparse)
