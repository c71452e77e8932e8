"""Masses, initial velocities and the bonds to watch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equibit.structures.errors import StructureError
from equibit.structures.neighbors import neighbor_list
from equibit.structures.structure import FloatArray, Structure

ACCELERATION = 9.648533212331002e-3
"""eV/(Å·amu) in Å/fs² (CODATA 2018), as in the compiled loop."""

BOLTZMANN = 8.617333262145179e-5
"""eV/K."""

_BOND = 1.25  # times the sum of the covalent radii
_BROKEN = 1.9
# Metals change neighbours without breaking anything.
_NONMETALS = (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 32, 33, 34, 35, 52, 53)


@dataclass(frozen=True)
class Bonds:
    """Bonds of a starting structure.

    Attributes:
        pairs: atoms i < j. Shape: [n_bonds, 2].
        shifts: in Å, what takes j to the image that i is bonded to. Shape: [n_bonds, 3].
        kinds: index into ``labels``. Shape: [n_bonds].
        longest: Å; a longer bond is broken. Shape: [n_bonds].
        labels: elements of each kind, ``C–H``.
    """

    pairs: NDArray[np.int32]
    shifts: FloatArray
    kinds: NDArray[np.int32]
    longest: FloatArray
    labels: tuple[str, ...]


def find_bonds(structure: Structure) -> Bonds:
    """Pairs of non-metal atoms closer than 1.25 times the sum of their covalent radii.

    Atoms are followed without wrapping, so a bond across the boundary of a cell stays with its image.

    Raises:
        StructureError: coinciding atoms.
    """
    from ase.data import chemical_symbols, covalent_radii

    radii = np.where(np.isin(structure.numbers, _NONMETALS), covalent_radii[structure.numbers], 0.0)
    if not radii.any():
        return Bonds(
            pairs=np.zeros((0, 2), np.int32),
            shifts=np.zeros((0, 3)),
            kinds=np.zeros(0, np.int32),
            longest=np.zeros(0),
            labels=(),
        )
    edges = neighbor_list(structure, 2 * _BOND * float(radii.max()))
    i, j = edges.receivers, edges.senders
    near = np.linalg.norm(edges.vectors, axis=1) < _BOND * (radii[i] + radii[j])
    bonded = near & (i < j) & (radii[i] > 0) & (radii[j] > 0)
    pairs = np.stack([i[bonded], j[bonded]], axis=1).astype(np.int32)
    names = [
        "–".join(chemical_symbols[z] for z in sorted(structure.numbers[pair], reverse=True))
        for pair in pairs
    ]
    labels = tuple(sorted(set(names)))
    return Bonds(
        pairs=pairs,
        shifts=np.ascontiguousarray(edges.shifts[bonded], dtype=np.float64),
        kinds=np.array([labels.index(name) for name in names], np.int32),
        longest=_BROKEN * radii[pairs].sum(axis=1),
        labels=labels,
    )


def masses_of(structure: Structure) -> FloatArray:
    """Standard atomic weights in amu. Shape: [n_atoms]."""
    from ase.data import atomic_masses

    masses: FloatArray = np.ascontiguousarray(atomic_masses[structure.numbers], dtype=np.float64)
    return masses


def initial_velocities(structure: Structure, temperature: float, seed: int) -> FloatArray:
    """Maxwell's velocities at exactly ``temperature``, without net motion.

    v = √(kT/m) ξ, less the net momentum and, in an open system, the net rotation, then scaled to
    2K = k T · (degrees of freedom). A lone atom stands still.

    Args:
        structure: atoms.
        temperature: K.
        seed: of ξ.

    Shape: → [n_atoms, 3], in Å/fs.

    Raises:
        StructureError: all degrees of freedom are net motion, and the temperature is not 0.
    """
    masses = masses_of(structure)
    scale = np.sqrt(BOLTZMANN * ACCELERATION * temperature / masses)[:, None]
    noise = np.random.default_rng(seed).standard_normal((len(structure), 3))
    velocities = scale * noise
    velocities -= (masses[:, None] * velocities).sum(axis=0) / masses.sum()
    if not structure.periodic and len(structure) > 1:
        velocities -= _rotation(structure.positions, velocities, masses)
    freedom = degrees_of_freedom(structure, "nve")
    if freedom == 0 or temperature == 0:
        return np.zeros_like(velocities)
    now = temperature_of(kinetic_energy(velocities, masses), freedom)
    if not now > 0:
        raise StructureError("no velocities but net motion: give the structure more atoms")
    return np.asarray(velocities * np.sqrt(temperature / now), dtype=np.float64)


def degrees_of_freedom(structure: Structure, ensemble: str) -> int:
    """3N, less what a run without a bath conserves: momentum, and in open systems rotation."""
    everything = 3 * len(structure)
    if ensemble == "langevin":
        return everything
    if structure.periodic or len(structure) == 1:
        return everything - 3
    inertia = _inertia(structure.positions, masses_of(structure))
    axes = int(np.linalg.matrix_rank(inertia, tol=1e-6 * max(float(np.trace(inertia)), 1e-12)))
    return everything - 3 - axes


def kinetic_energy(velocities: FloatArray, masses: FloatArray) -> float:
    """Σ m v²/2 in eV."""
    return float(0.5 * (masses * (velocities**2).sum(axis=1)).sum() / ACCELERATION)


def temperature_of(kinetic: float, freedom: int) -> float:
    """2K / (k · degrees of freedom) in K."""
    return 2.0 * kinetic / (BOLTZMANN * freedom) if freedom else 0.0


def _inertia(positions: FloatArray, masses: FloatArray) -> FloatArray:
    arms = positions - (masses[:, None] * positions).sum(axis=0) / masses.sum()
    second = (masses[:, None, None] * arms[:, :, None] * arms[:, None, :]).sum(axis=0)
    return np.asarray(np.trace(second) * np.eye(3) - second, dtype=np.float64)


def _rotation(positions: FloatArray, velocities: FloatArray, masses: FloatArray) -> FloatArray:
    """The part ω × r of velocities with I ω = L; a linear molecule has no spin about its axis."""
    arms = positions - (masses[:, None] * positions).sum(axis=0) / masses.sum()
    momentum = (masses[:, None] * np.cross(arms, velocities)).sum(axis=0)
    omega = np.linalg.pinv(_inertia(positions, masses), rcond=1e-6) @ momentum
    return np.asarray(np.cross(omega, arms), dtype=np.float64)
