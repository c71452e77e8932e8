"""Neighbour lists against brute force over images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from equibit.structures import Structure, StructureError
from equibit.structures.neighbors import check_distinct_positions, neighbor_list


def brute_force(structure: Structure, cutoff: float) -> set[tuple[int, ...]]:
    """Edges (i, j, n) by walking every image that can reach into the cutoff."""
    reach = [0, 0, 0]
    cell = np.zeros((3, 3)) if structure.cell is None else structure.cell
    if structure.periodic:
        lattice = cell[structure.pbc]
        spread = np.ptp(structure.positions, axis=0)
        # |n_k| ≤ ‖r‖ ‖b_k‖ with b_k the dual vectors of the periodic ones
        dual = np.linalg.norm(np.linalg.pinv(lattice), axis=0)
        limits = np.ceil((cutoff + np.linalg.norm(spread)) * dual).astype(int)
        for direction, limit in zip(np.flatnonzero(structure.pbc), limits, strict=True):
            reach[direction] = int(limit)
    images = np.array(list(itertools.product(*(range(-n, n + 1) for n in reach))))
    vectors = structure.positions[None, :] - structure.positions[:, None]
    distances = np.linalg.norm(vectors[None] + (images @ cell)[:, None, None], axis=-1)
    if (abs(distances - cutoff) < 1e-9).any():
        reject()  # rounding may put such a pair on either side of the cutoff
    distances[~images.any(axis=1), range(len(structure)), range(len(structure))] = np.inf
    return {(int(i), int(j), *map(int, images[n])) for n, i, j in np.argwhere(distances < cutoff)}


def as_set(structure: Structure, cutoff: float) -> set[tuple[int, ...]]:
    edges = neighbor_list(structure, cutoff)
    rows = np.column_stack([edges.receivers, edges.senders, edges.cell_shifts])
    assert len({tuple(row) for row in rows.tolist()}) == len(edges), "an edge is listed twice"
    return {tuple(row) for row in rows.tolist()}


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    n_atoms = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pbc = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    skew = draw(st.floats(0.0, 0.8))
    lengths = np.array([draw(st.floats(1.2, 6.0)) for _ in range(3)])
    cell = np.diag(lengths) + skew * lengths.min() * np.tril(rng.uniform(-1, 1, (3, 3)), -1)
    # beyond the cell on purpose: files hold unwrapped positions
    positions = rng.uniform(-1.5, 1.5, (n_atoms, 3)) @ cell
    return Structure(np.ones(n_atoms), positions, cell=cell, pbc=pbc)


@settings(max_examples=30)
@given(structures(), st.floats(0.5, 4.0))
def test_equals_brute_force(structure: Structure, cutoff: float) -> None:
    expected = brute_force(structure, cutoff)
    try:
        found = as_set(structure, cutoff)
    except StructureError:
        assert brute_force(structure, 0.05)
        return
    assert found == expected


@settings(max_examples=30)
@given(structures(), st.floats(0.5, 4.0))
def test_every_edge_has_its_reverse(structure: Structure, cutoff: float) -> None:
    try:
        found = as_set(structure, cutoff)
    except StructureError:
        return
    assert {(j, i, -a, -b, -c) for i, j, a, b, c in found} == found


def test_vectors_and_shifts_agree() -> None:
    cell = np.array([[3.0, 0, 0], [1.0, 3.1, 0], [0.4, -0.7, 2.9]])
    structure = Structure([6, 1], [[0.1, 0.2, 0.3], [1.5, 1.4, 4.0]], cell=cell, pbc=True)
    edges = neighbor_list(structure, 5.0)
    np.testing.assert_array_equal(edges.shifts, edges.cell_shifts @ cell)
    expected = (
        structure.positions[edges.senders] - structure.positions[edges.receivers] + edges.shifts
    )
    np.testing.assert_allclose(edges.vectors, expected, atol=0)
    assert (np.diff(edges.receivers) >= 0).all()
    assert edges.vectors.dtype == np.float64
    assert (np.linalg.norm(edges.vectors, axis=1) < 5.0).all()


def test_lattice_thinner_than_cutoff_sees_its_own_images() -> None:
    structure = Structure([1], [[0, 0, 0]], cell=np.eye(3), pbc=True)
    assert len(neighbor_list(structure, 1.01)) == 6
    assert len(neighbor_list(structure, 1.5)) == 18


def test_open_directions_have_no_images() -> None:
    structure = Structure([1], [[0, 0, 0]], cell=np.eye(3), pbc=[True, False, False])
    assert len(neighbor_list(structure, 2.5)) == 4


def test_periodic_chain_needs_one_lattice_vector_only() -> None:
    cell = np.diag([2.0, 0.0, 0.0])
    structure = Structure([1, 1], [[0, 0, 0], [0, 1, 0]], cell=cell, pbc=[True, False, False])
    assert as_set(structure, 2.1) == brute_force(structure, 2.1)


def test_single_atom_and_distant_atoms_have_no_edges() -> None:
    assert len(neighbor_list(Structure([1], [[0, 0, 0]]), 5.0)) == 0
    edges = neighbor_list(Structure([1, 1], [[0, 0, 0], [100, 0, 0]]), 5.0)
    assert edges.vectors.shape == (0, 3)


def test_a_cell_that_is_not_periodic_is_ignored() -> None:
    structure = Structure([1, 1], [[0, 0, 0], [0.9, 0, 0]], cell=np.eye(3))
    assert len(neighbor_list(structure, 5.0)) == 2


def test_small_and_large_molecules_are_searched_alike() -> None:
    """65 atoms go through the cell list, 64 through the matrix of distances."""
    positions = np.random.default_rng(3).uniform(0, 9, (64, 3))
    small = Structure(np.ones(64), positions)
    large = Structure(np.ones(65), np.vstack([positions, [1e3, 0, 0]]))
    assert as_set(small, 3.0) == as_set(large, 3.0) == brute_force(small, 3.0)


@pytest.mark.parametrize("n_atoms", [3, 100])
def test_coinciding_atoms_are_named(n_atoms: int) -> None:
    positions = np.arange(3 * n_atoms, dtype=float).reshape(-1, 3)
    positions[2] = positions[0] + [0, 0, 0.01]
    structure = Structure(np.ones(n_atoms), positions)
    for check in (check_distinct_positions, lambda s: neighbor_list(s, 3.0)):
        with pytest.raises(StructureError, match=r"atom [02] and atom [02] coincide.*0\.01 Å"):
            check(structure)


def test_coinciding_image_is_named() -> None:
    structure = Structure([1, 8], [[0, 0, 0], [4, 0, 0]], cell=4 * np.eye(3), pbc=True)
    for check in (check_distinct_positions, lambda s: neighbor_list(s, 3.0)):
        with pytest.raises(StructureError, match="periodic image of atom"):
            check(structure)


def test_flat_periodic_cell_is_refused() -> None:
    cell = [[1, 0, 0], [2, 0, 0], [0, 0, 1]]
    with pytest.raises(StructureError, match="no volume"):
        neighbor_list(Structure([1], [[0, 0, 0]], cell=cell, pbc=True), 1.0)


def test_vacuum_costs_no_memory() -> None:
    """Bins of 3 Å, or of 0.05 Å, would be 10¹⁰ and more here."""
    positions = np.random.default_rng(3).uniform(0, 9, (80, 3))
    box = Structure(np.ones(80), positions, cell=np.eye(3) * 9e3, pbc=True)
    stray = Structure(np.ones(81), np.vstack([positions, [8e3, 7e3, 9e3]]))
    expected = brute_force(Structure(np.ones(80), positions), 3.0)
    assert as_set(box, 3.0) == as_set(stray, 3.0) == expected
    check_distinct_positions(box)
    check_distinct_positions(stray)


def test_a_search_that_would_not_end_is_refused() -> None:
    positions = np.random.default_rng(3).uniform(0, 9, (80, 3))
    thin = Structure([1], [[0, 0, 0]], cell=np.diag([1e-5, 1, 1]), pbc=True)
    for far, structure in (
        ("1e.100 Å", Structure([1], [[0, 0, 0]], cell=np.eye(3) * 1e100, pbc=True)),
        ("1e.09 Å", Structure(np.ones(81), np.vstack([positions, [1e9, 1e9, 1e9]]))),
    ):
        with pytest.raises(StructureError, match=f"reach over {far}.*stray atom"):
            neighbor_list(structure, 3.0)
    with pytest.raises(StructureError, match="too thin"):
        neighbor_list(thin, 3.0)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_cutoff_is_refused(cutoff: float) -> None:
    with pytest.raises(ValueError, match="cutoff"):
        neighbor_list(Structure([1], [[0, 0, 0]]), cutoff)


def test_memory_and_edges_grow_linearly() -> None:
    rng = np.random.default_rng(0)
    n_atoms = 20000
    length = (n_atoms * 20.0) ** (1 / 3)
    grid = np.stack(np.meshgrid(*[np.arange(28)] * 3), -1).reshape(-1, 3)[:n_atoms]
    positions = grid * (length / 28) + rng.uniform(0, 0.5, (n_atoms, 3))
    structure = Structure(np.ones(n_atoms), positions, cell=length * np.eye(3), pbc=True)
    assert len(neighbor_list(structure, 3.0)) < 10 * n_atoms
