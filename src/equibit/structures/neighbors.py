"""Who is within the cutoff of whom, periodic images included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equibit.structures.errors import StructureError
from equibit.structures.structure import FloatArray, IntArray, Structure

MIN_DISTANCE = 0.05
"""Å. Closer nuclei are a broken file, not chemistry: H–H at 0.05 Å costs hundreds of eV."""

_SMALL = 64  # atoms; below it a matrix of distances is faster than a neighbour search
_BINS = 1e6  # of a search, and more with atoms; with vacuum they get wider than the cutoff
_MOST_IMAGES = 1e5  # of the cell, around one atom


@dataclass(frozen=True, eq=False)
class NeighborList:
    """Directed edges (i, j): both i → j and j → i are listed, sorted by receiver.

    r_ij = r_j + n_ij·cell − r_i, with ‖r_ij‖ < cutoff. An atom is a neighbour of its own periodic
    images, never of itself.

    Attributes:
        receivers: centre i. Shape: [n_edges].
        senders: neighbour j. Shape: [n_edges].
        cell_shifts: integers n_ij, in which image j is. Shape: [n_edges, 3].
        shifts: n_ij·cell in Å. Shape: [n_edges, 3].
        vectors: r_ij in Å. Shape: [n_edges, 3].
    """

    receivers: IntArray
    senders: IntArray
    cell_shifts: IntArray
    shifts: FloatArray
    vectors: FloatArray

    def __len__(self) -> int:
        return int(self.receivers.size)


def neighbor_list(structure: Structure, cutoff: float) -> NeighborList:
    """All pairs closer than ``cutoff``, in time and memory proportional to the number of atoms.

    The search is matscipy's cell list (https://github.com/libAtoms/matscipy); vectors are
    recomputed from the float64 positions.

    Args:
        structure: atoms, with any mixture of periodic and open directions and any cell shape.
        cutoff: in Å.

    Raises:
        ValueError: the cutoff is not a positive number.
        StructureError: two atoms, or an atom and a periodic image, closer than ``MIN_DISTANCE``;
            a periodic cell without volume.
    """
    edges = _search(structure, cutoff)
    _check_distances(structure, edges)
    return edges


def check_distinct_positions(structure: Structure) -> None:
    """Refuse a structure in which two atoms, periodic images included, coincide.

    Raises:
        StructureError: two atoms closer than ``MIN_DISTANCE`` (named with their distance).
    """
    _check_distances(structure, _search(structure, 20 * MIN_DISTANCE))  # in fewer bins


def closest_distance(structure: Structure, radius: float) -> float:
    """Smallest distance of two atoms, periodic images included, in Å; infinite beyond ``radius``.

    Raises:
        ValueError, StructureError: as :func:`neighbor_list`, but coinciding atoms are measured.
    """
    vectors = _search(structure, radius).vectors
    return float(np.linalg.norm(vectors, axis=1).min()) if len(vectors) else float("inf")


def _search(structure: Structure, cutoff: float) -> NeighborList:
    if not (np.isfinite(cutoff) and cutoff > 0):
        raise ValueError(f"cutoff is {cutoff}; expected a positive number of Å")
    if not structure.periodic and len(structure) <= _SMALL:
        return _search_all_pairs(structure, cutoff)
    # Not vesin: importing it imports torch where torch is installed.
    from matscipy.neighbours import neighbour_list

    cell = _search_cell(structure)
    reach = _reach(structure, cell, cutoff)
    try:
        i, j, n = neighbour_list(
            "ijS",
            cutoff=reach,
            positions=structure.positions,
            cell=cell if structure.periodic else None,  # None: a box around the atoms
            pbc=structure.pbc,
        )
    except RuntimeError as error:
        raise StructureError(
            f"no neighbour list for these {len(structure)} atoms: {error}"
        ) from error
    receivers, senders = i.astype(np.int64), j.astype(np.int64)
    cell_shifts = n.astype(np.int64)
    shifts = cell_shifts @ cell
    vectors = structure.positions[senders] - structure.positions[receivers] + shifts
    if reach == cutoff:
        return NeighborList(receivers, senders, cell_shifts, shifts, vectors)
    near = (vectors**2).sum(axis=1) < cutoff**2
    return NeighborList(
        receivers[near], senders[near], cell_shifts[near], shifts[near], vectors[near]
    )


def _search_all_pairs(structure: Structure, cutoff: float) -> NeighborList:
    vectors = structure.positions[None, :] - structure.positions[:, None]
    squared = (vectors**2).sum(-1)
    np.fill_diagonal(squared, np.inf)
    receivers, senders = np.nonzero(squared < cutoff**2)
    zeros = np.zeros((receivers.size, 3))
    return NeighborList(
        receivers, senders, zeros.astype(np.int64), zeros, vectors[receivers, senders]
    )


def _search_cell(structure: Structure) -> FloatArray:
    """The cell, with an arbitrary lattice vector in open directions, where none is used.

    Raises:
        StructureError: the periodic lattice vectors are linearly dependent.
    """
    if not structure.periodic or structure.cell is None:
        return np.zeros((3, 3))
    cell = structure.cell.copy()
    lattice = cell[structure.pbc]
    _, singular, axes = np.linalg.svd(lattice, full_matrices=True)
    if singular[-1] < 1e-6 * singular[0]:
        raise StructureError(
            f"the periodic cell {cell.tolist()} has no volume: its lattice vectors are linearly "
            "dependent"
        )
    cell[~structure.pbc] = axes[len(lattice) :]
    return cell


def _reach(structure: Structure, cell: FloatArray, cutoff: float) -> float:
    """The cutoff to search with: larger where bins of its size would fill the memory.

    Raises:
        StructureError: a stray atom or vacuum that no search can deal with, or a cell too thin for
            its images to be listed.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        extent = np.ptp(structure.positions, axis=0)
        images, bins = 1.0, _BINS + 64.0 * len(structure)
        if structure.periodic:
            inverse = np.linalg.inv(cell)
            heights = 1.0 / np.linalg.norm(inverse, axis=0)  # between opposite faces
            extent = np.where(structure.pbc, heights, np.ptp(structure.positions @ inverse, axis=0))
            images = np.prod(2.0 * np.ceil(cutoff / extent[structure.pbc]) + 1.0)
        wider = np.cbrt(np.prod(np.maximum(extent / cutoff, 1.0)) / bins)
    if not images < _MOST_IMAGES:
        raise StructureError(
            "the periodic cell is too thin or too skewed to list its images; repeat it, or give the "
            "same lattice by shorter vectors"
        )
    if not wider < (100.0 if len(structure) < 5000 else 2.0):
        raise StructureError(
            f"{len(structure)} atoms reach over {extent.max():.3g} Å, too far to search for "
            "neighbours: look for a stray atom, or take vacuum out of the cell"
        )
    return cutoff * max(1.0, float(wider))


def _check_distances(structure: Structure, edges: NeighborList) -> None:
    if len(edges) == 0:
        return
    distances = np.linalg.norm(edges.vectors, axis=1)
    closest = int(distances.argmin())
    if distances[closest] < MIN_DISTANCE:
        raise _too_close(
            int(edges.receivers[closest]),
            int(edges.senders[closest]),
            float(distances[closest]),
            image=bool(edges.cell_shifts[closest].any()),
        )


def _too_close(i: int, j: int, distance: float, *, image: bool) -> StructureError:
    other = f"a periodic image of atom {j}" if image else f"atom {j}"
    advice = "; check the cell" if image else ""
    return StructureError(
        f"atom {i} and {other} coincide: they are {distance:.3g} Å apart, and at least "
        f"{MIN_DISTANCE} Å is needed{advice}"
    )
