"""Errors of energies and forces, and what an isolated system must conserve.

Inputs are in eV, Å and eV/Å; every result is in meV, meV/atom or meV/Å.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from equibit.evaluation.record import Record
from equibit.structures.errors import StructureError
from equibit.structures.potential import Prediction
from equibit.structures.structure import FloatArray, IntArray, Structure

MEV_PER_EV = 1000.0


@dataclass(frozen=True)
class ErrorStatistics(Record):
    """Statistics of signed errors x.

    Attributes:
        mae: ⟨|x|⟩.
        rmse: √⟨x²⟩.
        maximum: max |x|.
        bias: ⟨x⟩, prediction minus reference.
        count: how many numbers.
    """

    mae: float
    rmse: float
    maximum: float
    bias: float
    count: int

    @classmethod
    def of(cls, errors: npt.ArrayLike) -> ErrorStatistics:
        x = np.asarray(errors, dtype=np.float64).ravel()
        _not_empty(x)
        size = np.abs(x)
        return cls(
            mae=float(size.mean()),
            rmse=_rms(x),
            maximum=float(size.max()),
            bias=float(x.mean()),
            count=x.size,
        )


@dataclass(frozen=True)
class MagnitudeStatistics(Record):
    """Statistics of non-negative magnitudes.

    Attributes:
        mean, median, rms, p99, maximum: of all magnitudes; p99 is the 99th percentile.
        count: how many.
    """

    mean: float
    median: float
    rms: float
    p99: float
    maximum: float
    count: int

    @classmethod
    def of(cls, magnitudes: npt.ArrayLike) -> MagnitudeStatistics:
        x = np.asarray(magnitudes, dtype=np.float64).ravel()
        _not_empty(x)
        return cls(
            mean=float(x.mean()),
            median=float(np.median(x)),
            rms=_rms(x),
            p99=float(np.quantile(x, 0.99)),
            maximum=float(x.max()),
            count=x.size,
        )


@dataclass(frozen=True)
class CosineStatistics(Record):
    """cos(F, F_ref) over atoms whose two forces are not zero."""

    mean: float
    median: float
    p01: float
    minimum: float
    count: int


@dataclass(frozen=True)
class Comparison(Record):
    """Distance between two answers for the same structures: a model and labels, or two models.

    Attributes:
        n_structures, n_atoms: how much was compared.
        energy: meV a structure, or None where a side has no energies.
        energy_centred: the same with the mean error removed, meV: what matters to dynamics.
        energy_per_atom: meV/atom.
        forces: Cartesian components, meV/Å, or None where a side has no forces.
        forces_by_element: the same for the atoms of one element, keyed by symbol.
        force_vectors: ‖F − F_ref‖ per atom, meV/Å.
        cosine: direction agreement of the forces.
        energy_errors: signed error of each structure, meV. Shape: [n_structures].
        force_mae: mean absolute component error of each structure, meV/Å. Shape: [n_structures].
        force_maximum: largest component error of each structure, meV/Å. Shape: [n_structures].
    """

    n_structures: int
    n_atoms: int
    energy: ErrorStatistics | None
    energy_centred: ErrorStatistics | None
    energy_per_atom: ErrorStatistics | None
    forces: ErrorStatistics | None
    forces_by_element: Mapping[str, ErrorStatistics]
    force_vectors: MagnitudeStatistics | None
    cosine: CosineStatistics | None
    energy_errors: FloatArray | None = field(repr=False)
    force_mae: FloatArray | None = field(repr=False)
    force_maximum: FloatArray | None = field(repr=False)


@dataclass(frozen=True)
class Answers:
    """Energies and forces of many structures, atoms concatenated in order.

    Attributes:
        numbers: atomic numbers. Shape: [n_atoms].
        n_atoms: atoms of each structure. Shape: [n_structures].
        energies: eV, or None. Shape: [n_structures].
        forces: eV/Å, or None. Shape: [n_atoms, 3].
    """

    numbers: IntArray
    n_atoms: IntArray
    energies: FloatArray | None
    forces: FloatArray | None

    @classmethod
    def of_labels(cls, structures: Sequence[Structure]) -> Answers:
        """Labels; a quantity that any structure lacks is None for all."""
        energies = [s.energy for s in structures]
        forces = [s.forces for s in structures]
        return cls(
            **_layout(structures),
            energies=(
                None if any(e is None for e in energies) else np.array(energies, dtype=np.float64)
            ),
            forces=(
                None
                if any(f is None for f in forces)
                else np.concatenate([f for f in forces if f is not None])
            ),
        )

    @classmethod
    def of_predictions(
        cls, structures: Sequence[Structure], predictions: Sequence[Prediction]
    ) -> Answers:
        forces = [p.forces for p in predictions if p.forces is not None]
        return cls(
            **_layout(structures),
            energies=np.array([p.energy for p in predictions], dtype=np.float64),
            forces=np.concatenate(forces) if len(forces) == len(predictions) else None,
        )


def compare(answers: Answers, reference: Answers) -> Comparison:
    """Errors x = answers − reference, in meV, meV/atom and meV/Å.

    Raises:
        StructureError: the two sides are not about the same atoms.
    """
    if not (
        np.array_equal(answers.n_atoms, reference.n_atoms)
        and np.array_equal(answers.numbers, reference.numbers)
    ):
        raise StructureError("the two sides of a comparison hold different atoms")
    energy_errors = None
    if answers.energies is not None and reference.energies is not None:
        energy_errors = MEV_PER_EV * (answers.energies - reference.energies)
    force_errors = cosine = None
    if answers.forces is not None and reference.forces is not None:
        force_errors = MEV_PER_EV * (answers.forces - reference.forces)
        cosine = _cosine(answers.forces, reference.forces)
    starts = np.concatenate([[0], np.cumsum(answers.n_atoms)[:-1]])
    return Comparison(
        n_structures=int(answers.n_atoms.size),
        n_atoms=int(answers.numbers.size),
        energy=_statistics(energy_errors),
        energy_centred=(
            None if energy_errors is None else _statistics(energy_errors - energy_errors.mean())
        ),
        energy_per_atom=(
            None if energy_errors is None else _statistics(energy_errors / answers.n_atoms)
        ),
        forces=_statistics(force_errors),
        forces_by_element=(
            {}
            if force_errors is None
            else {
                symbol(int(z)): ErrorStatistics.of(force_errors[answers.numbers == z])
                for z in np.unique(answers.numbers)
            }
        ),
        force_vectors=(
            None
            if force_errors is None
            else MagnitudeStatistics.of(np.linalg.norm(force_errors, axis=1))
        ),
        cosine=cosine,
        energy_errors=energy_errors,
        force_mae=(
            None
            if force_errors is None
            else np.add.reduceat(np.abs(force_errors).mean(axis=1), starts) / answers.n_atoms
        ),
        force_maximum=(
            None
            if force_errors is None
            else np.maximum.reduceat(np.abs(force_errors).max(axis=1), starts)
        ),
    )


@dataclass(frozen=True)
class NetStatistics(Record):
    """Momentum conservation: both vanish for the gradient of an invariant energy.

    Attributes:
        force: ‖Σ_i F_i‖ of each structure, meV/Å.
        torque: ‖Σ_i (r_i − r̄) × F_i‖ of each non-periodic structure, meV; None if all repeat.
    """

    force: MagnitudeStatistics
    torque: MagnitudeStatistics | None


def symbol(number: int) -> str:
    """Chemical symbol of an atomic number."""
    from ase.data import chemical_symbols

    return str(chemical_symbols[number])


def net_statistics(structures: Sequence[Structure], forces: Sequence[FloatArray]) -> NetStatistics:
    """Net force and torque of predicted forces (eV/Å), in meV/Å and meV."""
    net = [np.linalg.norm(f.sum(axis=0)) for f in forces]
    torques = [
        np.linalg.norm(np.cross(s.positions - s.positions.mean(axis=0), f).sum(axis=0))
        for s, f in zip(structures, forces, strict=True)
        if not s.periodic
    ]
    return NetStatistics(
        force=MagnitudeStatistics.of(MEV_PER_EV * np.array(net)),
        torque=MagnitudeStatistics.of(MEV_PER_EV * np.array(torques)) if torques else None,
    )


def _layout(structures: Sequence[Structure]) -> dict[str, IntArray]:
    if not structures:
        raise StructureError("there is nothing to compare: the list of structures is empty")
    return {
        "numbers": np.concatenate([s.numbers for s in structures]),
        "n_atoms": np.array([len(s) for s in structures], dtype=np.int64),
    }


def _statistics(errors: FloatArray | None) -> ErrorStatistics | None:
    return None if errors is None else ErrorStatistics.of(errors)


def _cosine(forces: FloatArray, reference: FloatArray) -> CosineStatistics | None:
    norms = np.linalg.norm(forces, axis=1) * np.linalg.norm(reference, axis=1)
    moving = norms > 0
    if not moving.any():
        return None
    cosines = np.einsum("ij,ij->i", forces, reference)[moving] / norms[moving]
    return CosineStatistics(
        mean=float(cosines.mean()),
        median=float(np.median(cosines)),
        p01=float(np.quantile(cosines, 0.01)),
        minimum=float(cosines.min()),
        count=int(cosines.size),
    )


def _rms(x: FloatArray) -> float:
    scale = float(np.abs(x).max())
    # Scaled first, so that round-off magnitudes such as 1e-200 do not underflow when squared.
    return scale * float(np.sqrt(np.mean((x / scale) ** 2))) if scale > 0 else 0.0


def _not_empty(x: FloatArray) -> None:
    if x.size == 0:
        raise StructureError("statistics of nothing: no structure or atom was compared")
