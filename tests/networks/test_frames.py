"""Local frames and the canonical orientation turn with the structure, whatever its symmetry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from equibit.networks.frames import canonical_orientation, local_frames
from equibit.networks.graph import DenseGraph, Graph, SparseGraph

CUTOFF = 5.0
HALF = 3**0.5 / 2
HEXAGON = torch.tensor([[1, 0, 0], [0.5, HALF, 0], [-0.5, HALF, 0], [-1, 0, 0], [-0.5, -HALF, 0],
                        [0.5, -HALF, 0]], dtype=torch.float64)  # fmt: skip
MOLECULES: dict[str, tuple[list[int], Tensor]] = {
    "CH4": ([0, 1, 1, 1, 1], 0.63 * torch.tensor(
        [[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])),
    "CO2": ([0, 1, 1], torch.tensor([[0, 0, 0], [0, 0, 1.16], [0, 0, -1.16]])),
    "OCS": ([0, 1, 2], torch.tensor([[0, 0, 0], [0, 0, 1.16], [0, 0, -1.56]])),
    "BF3": ([0, 1, 1, 1], torch.tensor(
        [[0, 0, 0], [1.3, 0, 0], [-0.65, 1.3 * HALF, 0], [-0.65, -1.3 * HALF, 0]])),
    "C6H6": ([0] * 6 + [1] * 6, torch.cat((1.39 * HEXAGON, 2.48 * HEXAGON))),
    "H2O": ([0, 1, 1], torch.tensor([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]])),
    "NH3": ([0, 1, 1, 1], torch.tensor(
        [[0, 0, 0.3], [0.94, 0, 0], [-0.47, 0.94 * HALF, 0], [-0.47, -0.94 * HALF, 0]])),
    "H2": ([1, 1], torch.tensor([[0, 0, 0], [0, 0, 0.74]])),
    "He": ([2], torch.zeros(1, 3)),
}  # fmt: skip


def dense(species: list[int]) -> DenseGraph:
    index = torch.tensor([species])
    return DenseGraph(index, torch.ones_like(index, dtype=torch.bool))


def random_molecule(seed: int, n_atoms: int = 9) -> tuple[DenseGraph, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    species = torch.randint(0, 3, (n_atoms,), generator=generator).tolist()
    positions = 1.3 * torch.randn(1, n_atoms, 3, generator=generator, dtype=torch.float64)
    return dense(species), positions


def sparse_from(dense_graph: DenseGraph, positions: Tensor) -> tuple[SparseGraph, Tensor]:
    n_atoms = positions.shape[1]
    receivers, senders = torch.nonzero(~torch.eye(n_atoms, dtype=torch.bool), as_tuple=True)
    graph = SparseGraph(
        species=dense_graph.species[0],
        structure_index=torch.zeros(n_atoms, dtype=torch.int64),
        receiver_index=receivers,
        sender_index=senders,
        n_structures=1,
    )
    return graph, positions[0, senders] - positions[0, receivers]


def rotation(seed: int, reflect: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    q = q * r.diagonal().sign()
    return q * torch.linalg.det(q).sign() * (-1 if reflect else 1)


def in_frame(frames: Tensor, vectors: Tensor) -> Tensor:
    return (frames.transpose(-1, -2) @ vectors.unsqueeze(-1)).squeeze(-1)


def assert_rotation(frames: Tensor) -> None:
    identity = torch.eye(3, dtype=torch.float64).expand_as(frames)
    torch.testing.assert_close(frames.transpose(-1, -2) @ frames, identity, rtol=0, atol=1e-13)
    torch.testing.assert_close(
        torch.linalg.det(frames), torch.ones(frames.shape[:-2], dtype=torch.float64)
    )


def polar_sum(graph: Graph, edge_vectors: Tensor) -> Tensor:
    """A vector feature as a network would build it, from its own radial function."""
    d = edge_vectors.norm(dim=-1, keepdim=True)
    weights = torch.where(
        d < CUTOFF, torch.cos(0.3 * d * (graph.senders(graph.species)[..., None] + 2)), 0
    )
    return graph.aggregate(weights * edge_vectors / d)


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_frames_turn_with_a_random_molecule_up_to_signs(seed: int, reflect: bool) -> None:
    graph, positions = random_molecule(seed)
    q = rotation(seed + 100, reflect)
    frames = local_frames(graph, graph.edge_vectors(positions), CUTOFF)
    turned = local_frames(graph, graph.edge_vectors(positions @ q.T), CUTOFF)
    assert_rotation(frames)
    overlap = frames.transpose(-1, -2) @ q.T @ turned
    torch.testing.assert_close(
        overlap.abs(), torch.eye(3, dtype=torch.float64).expand_as(overlap), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("name", MOLECULES)
def test_symmetric_environments_put_no_vector_on_arbitrary_axes(name: str) -> None:
    species, positions = MOLECULES[name]
    graph = dense(species)
    positions = positions.double().unsqueeze(0)
    for seed in range(3):
        q = rotation(seed, reflect=seed == 2)
        reference = graph.edge_vectors(positions)
        turned = graph.edge_vectors(positions @ q.T)
        before = local_frames(graph, reference, CUTOFF)
        after = local_frames(graph, turned, CUTOFF)
        assert_rotation(after)
        torch.testing.assert_close(
            in_frame(before, polar_sum(graph, reference)).abs(),
            in_frame(after, polar_sum(graph, turned)).abs(),
            rtol=0,
            atol=1e-12,
        )


def test_axis_of_a_symmetric_top_is_the_local_z_axis() -> None:
    for name, atom, axis in (
        ("NH3", 0, [0, 0, 1.0]),
        ("CO2", 0, [0, 0, 1.0]),
        ("BF3", 0, [0, 0, 1.0]),
    ):
        species, positions = MOLECULES[name]
        graph = dense(species)
        frames = local_frames(graph, graph.edge_vectors(positions.double()[None]), CUTOFF)
        torch.testing.assert_close(frames[0, atom, :, 2].abs(), torch.tensor(axis).double())


def test_one_neighbour_of_a_bent_molecule_defines_a_full_frame() -> None:
    """The last atom sees one other, yet messages bring it the bend; its frame must see it too."""
    positions = torch.tensor([[[0, 0, 0], [1.2, 0.9, 0.3], [2.7, 0, 0], [6.9, 0, 0.0]]]).double()
    graph = dense([0, 0, 0, 1])
    q = rotation(3)
    frames = local_frames(graph, graph.edge_vectors(positions), CUTOFF)
    turned = local_frames(graph, graph.edge_vectors(positions @ q.T), CUTOFF)
    overlap = frames[0, 3].T @ q.T @ turned[0, 3]
    torch.testing.assert_close(overlap.abs(), torch.eye(3).double(), rtol=0, atol=1e-9)


def test_an_isolated_atom_has_some_frame_and_gets_no_nan() -> None:
    graph = dense([0, 1])
    far = graph.edge_vectors(torch.tensor([[[0, 0, 0], [0, 0, 2 * CUTOFF]]]).double())
    assert_rotation(local_frames(graph, far, CUTOFF))
    assert_rotation(canonical_orientation(graph, far, CUTOFF))


def test_sparse_and_dense_graphs_give_the_same_frames_and_orientation() -> None:
    graph, positions = random_molecule(7)
    list_graph, vectors = sparse_from(graph, positions)
    dense_vectors = graph.edge_vectors(positions)
    a = local_frames(graph, dense_vectors, CUTOFF)[0]
    b = local_frames(list_graph, vectors, CUTOFF)
    torch.testing.assert_close((a.transpose(-1, -2) @ b).abs(), torch.eye(3).double().expand_as(a))
    torch.testing.assert_close(
        canonical_orientation(graph, dense_vectors, CUTOFF),
        canonical_orientation(list_graph, vectors, CUTOFF),
    )


def test_a_defect_beyond_the_cutoff_breaks_the_symmetry_of_a_crystal_site() -> None:
    """First shell cubic, second-nearest cell different: features are polar, frames must be fixed."""
    steps = torch.arange(-1.0, 2.0)
    lattice = 2.5 * torch.cartesian_prod(steps, steps, steps).double()
    lattice = torch.cat((lattice, torch.tensor([[5.0, 2.5, 0.0]]).double()))
    centre = 13
    receivers, senders = torch.nonzero(
        torch.cdist(lattice, lattice).fill_diagonal_(9) < 3, as_tuple=True
    )
    graph = SparseGraph(
        torch.zeros(len(lattice), dtype=torch.int64), torch.zeros(len(lattice), dtype=torch.int64),
        receivers, senders, 1,
    )  # fmt: skip
    q = rotation(5)
    frames = local_frames(graph, lattice[senders] - lattice[receivers], 3.0)[centre]
    turned = lattice @ q.T
    after = local_frames(graph, turned[senders] - turned[receivers], 3.0)[centre]
    overlap = (frames.T @ q.T @ after).abs()
    torch.testing.assert_close(overlap, torch.eye(3).double(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_rotated_copies_have_equal_edges_in_the_canonical_orientation(seed: int) -> None:
    graph, positions = random_molecule(seed)
    bonded = ~torch.eye(positions.shape[1], dtype=torch.bool)
    reference = graph.edge_vectors(positions)
    orientation = canonical_orientation(graph, reference, CUTOFF)
    assert_rotation(orientation)
    for turn in range(4):
        turned = graph.edge_vectors(positions @ rotation(10 * seed + turn).T)
        again = canonical_orientation(graph, turned, CUTOFF)
        difference = turned @ again[:, None] - reference @ orientation[:, None]
        assert difference[0, bonded].abs().max() < 1e-12


def test_the_canonical_orientation_of_a_planar_molecule_is_reproduced() -> None:
    species, positions = MOLECULES["H2O"]
    positions = positions.double()[None]
    positions[0, 1] *= 1.05
    graph = dense(species)
    bonded = ~torch.eye(3, dtype=torch.bool)
    expected = None
    for seed in range(4):
        vectors = graph.edge_vectors(positions @ rotation(seed).T)
        oriented = (vectors @ canonical_orientation(graph, vectors, CUTOFF)[:, None])[0, bonded]
        expected = oriented if expected is None else expected
        torch.testing.assert_close(oriented, expected, rtol=0, atol=1e-12)


def test_the_canonical_orientation_does_not_depend_on_the_order_of_atoms_or_the_batch() -> None:
    graph, positions = random_molecule(2)
    orientation = canonical_orientation(graph, graph.edge_vectors(positions), CUTOFF)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = dense(graph.species[0, order].tolist())
    torch.testing.assert_close(
        canonical_orientation(shuffled, shuffled.edge_vectors(positions[:, order]), CUTOFF),
        orientation, rtol=0, atol=1e-12,
    )  # fmt: skip
    other, other_positions = random_molecule(3, n_atoms=5)
    species, mask = torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, 9, dtype=torch.bool)
    species[0, :5], mask[0, :5] = other.species[0], True
    species[1], mask[1] = graph.species[0], True
    padded = torch.zeros(2, 9, 3, dtype=torch.float64)
    padded[0, :5], padded[1] = other_positions[0], positions[0]
    both = DenseGraph(species, mask)
    torch.testing.assert_close(
        canonical_orientation(both, both.edge_vectors(padded), CUTOFF)[1], orientation[0]
    )
