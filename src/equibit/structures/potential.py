"""The one interface that FP32 networks, fake-quantised networks and the native engine answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from equibit.structures.structure import FloatArray, Structure


@dataclass(frozen=True)
class Prediction:
    """What a potential says about one structure.

    Attributes:
        energy: total energy in eV.
        atomic_energies: its parts, summing to ``energy``, in eV. Shape: [n_atoms].
        forces: −∂E/∂r in eV/Å, or None when not asked for. Shape: [n_atoms, 3].
        stress: (1/V) ∂E/∂ε in eV/Å³, or None when not asked for. Shape: [3, 3].
    """

    energy: float
    atomic_energies: FloatArray
    forces: FloatArray | None = None
    stress: FloatArray | None = None


@dataclass(frozen=True)
class PotentialInfo:
    """What a user must know before calling a potential.

    Attributes:
        name: name of the model or the path it came from.
        elements: atomic numbers it was trained on, ascending.
        cutoff: interaction radius of one layer in Å.
        dtype: arithmetic of the network, ``float32`` or ``float64``.
        recipe: name of the quantisation recipe, or ``fp32``.
    """

    name: str
    elements: tuple[int, ...]
    cutoff: float
    dtype: str
    recipe: str


@runtime_checkable
class Potential(Protocol):
    """Energies, forces and stresses of structures, whatever computes them."""

    @property
    def info(self) -> PotentialInfo: ...

    def compute(
        self, structures: Sequence[Structure], *, forces: bool = True, stress: bool = False
    ) -> list[Prediction]:
        """Predictions in the order of ``structures``; a result never depends on its neighbours in the batch.

        Raises:
            ModelError: an element the model never saw (the message names the atom).
            StructureError: coinciding atoms, or stress asked of a structure without a 3-D cell.
        """
        ...
