"""Small analytic potentials, so that evaluation is tested without any network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equibit.structures import ModelError, PotentialInfo, Prediction, Structure, StructureError


@dataclass(frozen=True)
class MorsePotential:
    """E = Σ_{i<j} D [(1 − e^{−a(r − r₀)})² − 1] (1 − r²/r_c²)², periodic images included.

    ``tilt`` adds tilt·Σ x² along the laboratory's first axis, which no rotation leaves alone;
    ``step`` rounds the forces, as a quantiser would.
    """

    depth: float = 1.0
    width: float = 1.3
    length: float = 1.4
    cutoff: float = 4.0
    tilt: float = 0.0
    step: float = 0.0
    name: str = "morse"
    recipe: str = "fp32"
    elements: tuple[int, ...] = (1, 6, 8, 29)
    dtype: str = "float64"

    @property
    def info(self) -> PotentialInfo:
        return PotentialInfo(self.name, self.elements, self.cutoff, self.dtype, self.recipe)

    def compute(
        self, structures: Sequence[Structure], *, forces: bool = True, stress: bool = False
    ) -> list[Prediction]:
        return [self._one(s, forces, stress) for s in structures]

    def _one(self, structure: Structure, forces: bool, stress: bool) -> Prediction:
        for atom, number in enumerate(structure.numbers):
            if number not in self.elements:
                raise ModelError(f"atom {atom} has atomic number {number}, unknown to {self.name}")
        positions = structure.positions.astype(self.dtype)
        energies = np.zeros(len(structure))
        gradient = np.zeros((len(structure), 3))
        virial = np.zeros((3, 3))
        for shift in _shifts(structure, self.cutoff):
            vectors = positions[None, :] + shift.astype(self.dtype) - positions[:, None]
            distances = np.linalg.norm(vectors, axis=-1)
            near = distances < self.cutoff
            if not shift.any():
                np.fill_diagonal(near, False)
            i, j = np.nonzero(near)
            r = distances[near]
            if (r < 1e-6).any():
                raise StructureError(f"atoms {i[np.argmin(r)]} and {j[np.argmin(r)]} coincide")
            energy, slope = self._pair(r)
            np.add.at(energies, i, 0.5 * energy)
            pull = (0.5 * slope / r)[:, None] * vectors[near]
            np.add.at(gradient, i, -pull)
            np.add.at(gradient, j, pull)
            virial += vectors[near].T @ pull
        if self.tilt:
            x = positions - positions.mean(axis=0)
            energies = energies + self.tilt * x[:, 0] ** 2
            slopes = 2 * self.tilt * x[:, 0]
            gradient[:, 0] += slopes - slopes.mean()
        if self.step:
            gradient = self.step * np.rint(gradient / self.step)
        if stress and not structure.pbc.all():
            raise StructureError("stress needs a cell periodic in three directions")
        return Prediction(
            energy=float(energies.sum()),
            atomic_energies=energies.astype(np.float64),
            forces=-gradient if forces else None,
            stress=virial / abs(np.linalg.det(structure.cell)) if stress else None,
        )

    def _pair(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        decay = np.exp(-self.width * (r - self.length))
        energy = self.depth * ((1 - decay) ** 2 - 1)
        slope = 2 * self.depth * self.width * (1 - decay) * decay
        fade = (1 - (r / self.cutoff) ** 2) ** 2
        fade_slope = -4 * r / self.cutoff**2 * (1 - (r / self.cutoff) ** 2)
        return energy * fade, slope * fade + energy * fade_slope


def _shifts(structure: Structure, cutoff: float) -> list[np.ndarray]:
    if structure.cell is None or not structure.periodic:
        return [np.zeros(3)]
    reciprocal = np.linalg.inv(structure.cell)
    spread = np.ptp(structure.positions @ reciprocal, axis=0)
    reach = np.ceil(cutoff * np.linalg.norm(reciprocal, axis=0) + spread).astype(int)
    reach = np.where(structure.pbc, reach, 0)
    return [
        np.array(image) @ structure.cell
        for image in np.ndindex(*(2 * reach + 1))
        for image in [np.array(image) - reach]
    ]


def molecule(seed: int = 0, noise: float = 0.08) -> Structure:
    """A bent C–C–O–H chain with hydrogens, shaken."""
    rng = np.random.default_rng(seed)
    positions = np.array(
        [
            [0, 0, 0],
            [1.5, 0, 0],
            [2.1, 1.3, 0],
            [3.0, 1.2, 0.3],
            [-0.6, 0.9, 0.2],
            [-0.6, -0.5, -0.8],
        ]
    )
    return Structure([6, 6, 8, 1, 1, 1], positions + noise * rng.standard_normal((6, 3)))


def labelled(potential: MorsePotential, count: int, noise: float = 0.08) -> list[Structure]:
    """Molecules with the labels that ``potential`` gives them."""
    from dataclasses import replace

    bare = [molecule(seed, noise) for seed in range(count)]
    return [
        replace(s, energy=p.energy, forces=p.forces)
        for s, p in zip(bare, potential.compute(bare), strict=True)
    ]


def copper() -> Structure:
    """Four copper atoms in a slightly sheared cubic cell."""
    a = 3.2
    basis = np.array([[0, 0, 0], [0.5, 0.52, 0], [0.5, 0, 0.47], [0, 0.5, 0.5]])
    cell = a * np.array([[1, 0.02, 0], [0, 1.05, 0], [0.03, 0, 0.97]])
    return Structure([29] * 4, basis @ cell, cell=cell, pbc=True)
