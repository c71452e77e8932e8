"""Many structures in a few arrays: what array files hold, turned into structures on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from equibit.structures.errors import StructureError
from equibit.structures.structure import (
    MAX_ATOMIC_NUMBER,
    BoolArray,
    FloatArray,
    IntArray,
    Structure,
)


@dataclass(frozen=True, eq=False)
class PackedStructures(Sequence[Structure]):
    """A sequence of structures in Å, eV and eV/Å, validated at once and built when asked for.

    Attributes:
        offsets: structure k owns atoms offsets[k] to offsets[k+1]. Shape: [n_structures + 1].
        numbers: atomic numbers. Shape: [n_atoms].
        positions: Shape: [n_atoms, 3].
        energies: NaN where there is no label; None for no labels. Shape: [n_structures].
        forces: NaN where there is no label; None for no labels. Shape: [n_atoms, 3].
        stresses: NaN where there is no label; None for no labels. Shape: [n_structures, 3, 3].
        cells: None for no cells. Shape: [n_structures, 3, 3].
        pbc: None for no periodicity. Shape: [n_structures, 3].
        infos: what else is known about each structure, or None.

    Raises:
        StructureError: shapes that disagree, a position that is not finite, an impossible element,
            or an empty structure; the message names structure and atom.
    """

    offsets: IntArray
    numbers: IntArray
    positions: FloatArray
    energies: FloatArray | None = None
    forces: FloatArray | None = None
    stresses: FloatArray | None = None
    cells: FloatArray | None = None
    pbc: BoolArray | None = None
    infos: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        n_atoms, n_structures = int(self.offsets[-1]), len(self)
        shapes = {
            "numbers": (self.numbers, (n_atoms,)),
            "positions": (self.positions, (n_atoms, 3)),
            "energies": (self.energies, (n_structures,)),
            "forces": (self.forces, (n_atoms, 3)),
            "stresses": (self.stresses, (n_structures, 3, 3)),
            "cells": (self.cells, (n_structures, 3, 3)),
            "pbc": (self.pbc, (n_structures, 3)),
        }
        for name, (array, shape) in shapes.items():
            if array is not None and array.shape != shape:
                raise StructureError(f"{name} have shape {array.shape}; expected {shape}")
        empty = np.flatnonzero(np.diff(self.offsets) < 1)
        if empty.size:
            raise StructureError(f"structure {empty[0]} has no atoms")
        for structure, reason in impossible_atoms(self.offsets, self.numbers, self.positions):
            raise StructureError(f"structure {structure}: {reason}")

    @classmethod
    def from_structures(cls, structures: Sequence[Structure]) -> PackedStructures:
        """Pack structures of any sizes; labels that some of them lack become NaN.

        Raises:
            StructureError: no structures at all.
        """
        if not structures:
            raise StructureError("there are no structures to pack")
        sizes = [len(s) for s in structures]
        blank = np.full((3, 3), np.nan)
        has = {
            name: any(getattr(s, name) is not None for s in structures)
            for name in ("energy", "forces", "stress", "cell")
        }
        return cls(
            offsets=np.concatenate([[0], np.cumsum(sizes)]),
            numbers=np.concatenate([s.numbers for s in structures]),
            positions=np.concatenate([s.positions for s in structures]),
            energies=np.array([np.nan if s.energy is None else s.energy for s in structures])
            if has["energy"]
            else None,
            forces=np.concatenate(
                [np.full((len(s), 3), np.nan) if s.forces is None else s.forces for s in structures]
            )
            if has["forces"]
            else None,
            stresses=np.stack([blank if s.stress is None else s.stress for s in structures])
            if has["stress"]
            else None,
            cells=np.stack([np.zeros((3, 3)) if s.cell is None else s.cell for s in structures])
            if has["cell"]
            else None,
            pbc=np.stack([s.pbc for s in structures]) if has["cell"] else None,
            infos=[dict(s.info) for s in structures] if any(s.info for s in structures) else None,
        )

    @property
    def sizes(self) -> IntArray:
        """Number of atoms of each structure. Shape: [n_structures]."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return self.offsets.size - 1

    @overload
    def __getitem__(self, index: int) -> Structure: ...
    @overload
    def __getitem__(self, index: slice) -> PackedStructures: ...
    def __getitem__(self, index: int | slice) -> Structure | PackedStructures:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        k = range(len(self))[index]
        atoms = slice(self.offsets[k], self.offsets[k + 1])
        energy = None if self.energies is None else float(self.energies[k])
        cell = None if self.cells is None else self.cells[k]
        return Structure(
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            cell=None if cell is None or not cell.any() else cell,
            pbc=np.zeros(3, dtype=bool) if self.pbc is None else self.pbc[k],
            energy=None if energy is None or np.isnan(energy) else energy,
            forces=None if self.forces is None else _known(self.forces[atoms]),
            stress=None if self.stresses is None else _known(self.stresses[k]),
            info={} if self.infos is None else self.infos[k],
        )

    def __iter__(self) -> Iterator[Structure]:
        return (self[k] for k in range(len(self)))

    def select(self, indices: npt.ArrayLike) -> PackedStructures:
        """The structures at ``indices``, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        sizes = self.sizes[chosen]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        atoms = np.repeat(self.offsets[chosen] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return PackedStructures(
            offsets=offsets,
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            energies=None if self.energies is None else self.energies[chosen],
            forces=None if self.forces is None else self.forces[atoms],
            stresses=None if self.stresses is None else self.stresses[chosen],
            cells=None if self.cells is None else self.cells[chosen],
            pbc=None if self.pbc is None else self.pbc[chosen],
            infos=None if self.infos is None else [self.infos[k] for k in chosen],
        )


def impossible_atoms(
    offsets: IntArray, numbers: IntArray, positions: FloatArray
) -> Iterator[tuple[int, str]]:
    """Structures of the arrays of ``PackedStructures`` with an atom that cannot be, and why.

    A structure with several of them comes up several times.
    """

    def place(atom: np.intp) -> tuple[int, str]:
        structure = int(np.searchsorted(offsets, atom, side="right")) - 1
        return structure, f"atom {atom - offsets[structure]}"

    for atom in np.flatnonzero((numbers < 1) | (numbers > MAX_ATOMIC_NUMBER)):
        structure, name = place(atom)
        yield (
            structure,
            f"{name} has atomic number {numbers[atom]}; expected 1 to {MAX_ATOMIC_NUMBER}",
        )
    for atom in np.flatnonzero(~np.isfinite(positions).all(axis=1)):
        structure, name = place(atom)
        yield structure, f"{name} is at {positions[atom]}; all must be finite"


def _known(label: FloatArray) -> FloatArray | None:
    return None if np.isnan(label).all() else label
