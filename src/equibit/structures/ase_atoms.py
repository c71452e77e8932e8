"""Conversion from and to ASE's atoms; labels travel as a single-point calculator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from equibit.structures.structure import FloatArray, Structure

if TYPE_CHECKING:
    from ase import Atoms

_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def from_ase(atoms: Atoms) -> Structure:
    """A structure from ASE's atoms, with whatever energy, forces and stress were computed for them.

    Nothing is calculated: labels come from stored results. ASE's units are equibit's.

    Raises:
        StructureError: empty system, NaN or infinite number.
    """
    results: Mapping[str, Any] = getattr(atoms.calc, "results", None) or {}
    cell = np.asarray(atoms.cell.array)
    stress = results.get("stress")
    return Structure(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=cell if cell.any() else None,
        pbc=atoms.pbc,
        energy=results.get("energy"),
        forces=results.get("forces"),
        stress=None if stress is None else stress_matrix(np.asarray(stress, dtype=np.float64)),
        momenta=atoms.get_momenta() if atoms.has("momenta") else None,
        info=dict(atoms.info),
    )


def to_ase(structure: Structure) -> Atoms:
    """ASE's atoms with the structure's labels as stored results."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = Atoms(
        numbers=structure.numbers,
        positions=structure.positions,
        cell=structure.cell,
        pbc=structure.pbc,
        momenta=structure.momenta,
        info=dict(structure.info),
    )
    labels: dict[str, Any] = {}
    if structure.energy is not None:
        labels["energy"] = structure.energy
    if structure.forces is not None:
        labels["forces"] = structure.forces.copy()
    if structure.stress is not None:
        labels["stress"] = np.array([structure.stress[i, j] for i, j in _VOIGT])
    if labels:
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def stress_matrix(values: FloatArray) -> FloatArray:
    """A 3 × 3 stress from nine numbers, or from six in Voigt order xx, yy, zz, yz, xz, xy.

    Raises:
        ValueError: another number of values.
    """
    if values.size == 9:
        return values.reshape(3, 3)
    if values.size != 6:
        raise ValueError(f"a stress has six (Voigt) or nine numbers, not {values.size}")
    matrix = np.empty((3, 3))
    for value, (i, j) in zip(values.reshape(6), _VOIGT, strict=True):
        matrix[i, j] = matrix[j, i] = value
    return matrix
