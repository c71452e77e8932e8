"""What a run measures on its way, and the drift of its energy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equibit.evaluation.record import Record
from equibit.structures.structure import FloatArray

BLOCKS = 20
_FIXED = 3  # potential, kinetic, heat


@dataclass(frozen=True)
class Samples:
    """Attributes:
    time: ps. Shape: [n].
    potential, kinetic, heat: eV; heat is what a bath has given since the start. Shape: [n].
    temperature: K. Shape: [n].
    bonds: mean, smallest and largest length of each kind in Å. Shape: [n, n_kinds, 3].
    labels: the kinds.
    """

    time: FloatArray
    potential: FloatArray
    kinetic: FloatArray
    heat: FloatArray
    temperature: FloatArray
    bonds: FloatArray
    labels: tuple[str, ...]

    @property
    def conserved(self) -> FloatArray:
        """Potential and kinetic energy, less what the bath gave, in eV. Shape: [n]."""
        return self.potential + self.kinetic - self.heat

    @classmethod
    def of_rows(
        cls, rows: FloatArray, interval: float, kelvin_per_ev: float, labels: tuple[str, ...]
    ) -> Samples:
        """From rows of the compiled loop, ``interval`` ps apart, the first at time 0."""
        kinetic = rows[:, 1]
        return cls(
            time=np.arange(len(rows), dtype=np.float64) * interval,
            potential=rows[:, 0],
            kinetic=kinetic,
            heat=rows[:, 2],
            temperature=kinetic * kelvin_per_ev,
            bonds=rows[:, _FIXED:].reshape(len(rows), -1, 3),
            labels=labels,
        )


@dataclass(frozen=True)
class Drift(Record):
    """Slope of the conserved energy over time.

    Attributes:
        slope: meV per atom and ps.
        error: its standard error, from the scatter of block means, or None for too short a run.
    """

    slope: float
    error: float | None


def energy_drift(time: FloatArray, energy: FloatArray, n_atoms: int) -> Drift:
    """Straight line through the means of 20 blocks of the conserved energy.

    The energy of a step fluctuates with the motion and is correlated in time; means of blocks that
    are longer than this memory scatter independently, so the usual error of a slope holds for them.

    Args:
        time: ps. Shape: [n].
        energy: conserved energy in eV. Shape: [n].
        n_atoms: atoms.

    Returns:
        The slope; 0 without an error for fewer than three samples, and a slope without an error for
        fewer than two per block.
    """
    if len(time) < _FIXED:
        return Drift(0.0, None)
    blocks = BLOCKS if len(time) >= 2 * BLOCKS else len(time)
    x = np.array([block.mean() for block in np.array_split(time, blocks)])
    y = np.array(
        [block.mean() for block in np.array_split(1e3 * (energy - energy[0]) / n_atoms, blocks)]
    )
    x, y = x - x.mean(), y - y.mean()
    slope = float((x * y).sum() / (x * x).sum())
    if len(time) < 2 * BLOCKS:
        return Drift(slope, None)
    residual = y - slope * x
    error = float(np.sqrt((residual**2).sum() / (blocks - 2) / (x * x).sum()))
    return Drift(slope, error)
