"""Local equivariance error: how much predicted forces fail to turn with the molecule.

For a rotation R acting on a structure G, cell included, and on forces F:

    LEE_i(R, G) = ‖F_i(R·G) − R·F_i(G)‖,    ΔE(R, G) = |E(R·G) − E(G)|

R is drawn from the Haar measure, never from the symmetries of a codebook, and neighbour lists are
rebuilt because the rotated structure is handed to the potential as a new one. The rounding of the
arithmetic itself gives a floor, which the same network without quantisation measures in FP32 and
FP64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from equibit.evaluation.batches import (
    DEFAULT_BATCH_SIZE,
    Progress,
    batched,
    predict_all,
    predict_batch,
    silent,
)
from equibit.evaluation.metrics import MEV_PER_EV, MagnitudeStatistics
from equibit.evaluation.record import Record
from equibit.structures.errors import ConfigError
from equibit.structures.potential import Potential
from equibit.structures.structure import FloatArray, IntArray, Structure

DEFAULT_ROTATIONS = 32
BINS_PER_DECADE = 8
HISTOGRAM_RANGE = (-16, 5)  # decades of meV/Å: from below FP64 round-off to a broken model


@dataclass(frozen=True)
class LogHistogram(Record):
    """Counts of magnitudes in bins equal on a logarithmic axis.

    Attributes:
        edges: ascending, in the unit of the magnitudes. Shape: [n_bins + 1].
        counts: magnitudes in each bin; those beyond the ends are in the end bins. Shape: [n_bins].
        zeros: magnitudes that are exactly zero, in no bin.
    """

    edges: FloatArray = field(repr=False)
    counts: IntArray = field(repr=False)
    zeros: int

    @classmethod
    def of(cls, magnitudes: FloatArray) -> LogHistogram:
        low, high = HISTOGRAM_RANGE
        edges = 10.0 ** np.linspace(low, high, (high - low) * BINS_PER_DECADE + 1)
        positive = magnitudes[magnitudes > 0]
        counts, _ = np.histogram(np.clip(positive, edges[0], edges[-1]), bins=edges)
        return cls(edges=edges, counts=counts, zeros=int(magnitudes.size - positive.size))


@dataclass(frozen=True)
class Equivariance(Record):
    """Local equivariance error of one potential.

    Attributes:
        name: of the potential.
        dtype: its arithmetic.
        forces: LEE over atoms × rotations × structures, meV/Å.
        energy: |E(RG) − E(G)| over rotations × structures, meV.
        histogram: of the LEE, meV/Å.
        n_structures, n_rotations: how many of each.
        improper: whether reflections were among the rotations.
        seed: of the rotations.
    """

    name: str
    dtype: str
    forces: MagnitudeStatistics
    energy: MagnitudeStatistics
    histogram: LogHistogram
    n_structures: int
    n_rotations: int
    improper: bool
    seed: int


@dataclass(frozen=True)
class LieDerivative(Record):
    """Finite-difference Lie derivative of the forces along the three axes of rotation.

        L_a F(G) = [ρ(−θ) F(R_a(θ) G) − ρ(θ) F(R_a(−θ) G)] / 2θ

    It vanishes for an equivariant force. On a rounded network it depends on θ, because codes jump;
    the angle is therefore part of the result.

    Attributes:
        angle: θ in rad.
        forces: ‖L_a F‖ over atoms × axes × structures, meV/Å/rad.
        n_structures: how many structures.
    """

    angle: float
    forces: MagnitudeStatistics
    n_structures: int


def haar_rotations(count: int, *, seed: int = 0, improper: bool = False) -> FloatArray:
    """Random orthogonal matrices, uniform over SO(3), or over O(3) when ``improper``.

    A unit quaternion uniform on S³ gives a rotation uniform on SO(3) (Shoemake 1992).

    Returns:
        Rotation matrices in float64. Shape: [count, 3, 3].

    Raises:
        ConfigError: count is less than one.
    """
    if count < 1:
        raise ConfigError(f"{count} rotations asked for; at least one is needed")
    generator = np.random.default_rng(seed)
    q = generator.standard_normal((count, 4))
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rotations = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    ).transpose(2, 0, 1)
    if improper:
        rotations = rotations * generator.choice([-1.0, 1.0], size=(count, 1, 1))
    return rotations


def axis_rotation(axis: int, angle: float) -> FloatArray:
    """Rotation by ``angle`` (rad) about Cartesian axis 0, 1 or 2. Shape: [3, 3]."""
    matrix = np.eye(3)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first] = np.sin(angle)
    matrix[first, second] = -np.sin(angle)
    return matrix


def measure_equivariance(
    potential: Potential,
    structures: Sequence[Structure],
    *,
    n_rotations: int = DEFAULT_ROTATIONS,
    improper: bool = False,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH_SIZE,
    stage: str = "rotations",
    progress: Progress = silent,
) -> Equivariance:
    """LEE over Haar-random rotations; every structure gets rotations of its own.

    Raises:
        ConfigError: no rotation asked for.
        EquibitError: what the potential raised, naming the structure.
    """
    unrotated = predict_all(potential, structures, batch_size=batch_size, stage=stage)
    rotations = haar_rotations(n_rotations * len(structures), seed=seed, improper=improper)
    rotations = rotations.reshape(len(structures), n_rotations, 3, 3)
    force_errors: list[FloatArray] = []
    energy_errors: list[float] = []
    progress(stage, 0, rotations.shape[0] * n_rotations)
    for index, (structure, before) in enumerate(zip(structures, unrotated, strict=True)):
        for chunk in _chunks(rotations[index], batch_size):
            rotated = [structure.rotated(rotation) for rotation in chunk]
            after = predict_batch(potential, rotated, first_index=index)
            for rotation, prediction in zip(chunk, after, strict=True):
                error = _forces(prediction.forces) - _forces(before.forces) @ rotation.T
                force_errors.append(np.linalg.norm(error, axis=1))
                energy_errors.append(abs(prediction.energy - before.energy))
            progress(stage, len(energy_errors), rotations.shape[0] * n_rotations)
    magnitudes = MEV_PER_EV * np.concatenate(force_errors)
    return Equivariance(
        name=potential.info.name,
        dtype=potential.info.dtype,
        forces=MagnitudeStatistics.of(magnitudes),
        energy=MagnitudeStatistics.of(MEV_PER_EV * np.array(energy_errors)),
        histogram=LogHistogram.of(magnitudes),
        n_structures=len(structures),
        n_rotations=n_rotations,
        improper=improper,
        seed=seed,
    )


def lie_derivative(
    potential: Potential,
    structures: Sequence[Structure],
    *,
    angle: float = 1e-2,
    batch_size: int = DEFAULT_BATCH_SIZE,
    stage: str = "Lie derivative",
    progress: Progress = silent,
) -> LieDerivative:
    """Finite-difference Lie derivative of the forces by rotations of ±``angle``.

    Raises:
        ConfigError: the angle is not positive.
        EquibitError: what the potential raised, naming the structure.
    """
    if not angle > 0:
        raise ConfigError(f"the angle of the Lie derivative is {angle}; it must be positive")
    turns = [(axis_rotation(a, angle), axis_rotation(a, -angle)) for a in range(3)]
    derivatives: list[FloatArray] = []
    progress(stage, 0, len(structures))
    done = 0
    for batch in batched(structures, batch_size):
        for plus, minus in turns:
            ahead = predict_batch(potential, [s.rotated(plus) for s in batch], first_index=done)
            behind = predict_batch(potential, [s.rotated(minus) for s in batch], first_index=done)
            derivatives += [
                np.linalg.norm(
                    (_forces(a.forces) @ plus - _forces(b.forces) @ minus) / (2 * angle), axis=1
                )
                for a, b in zip(ahead, behind, strict=True)
            ]
        done += len(batch)
        progress(stage, done, len(structures))
    return LieDerivative(
        angle=angle,
        forces=MagnitudeStatistics.of(MEV_PER_EV * np.concatenate(derivatives)),
        n_structures=len(structures),
    )


def _chunks(rotations: FloatArray, size: int) -> list[FloatArray]:
    return [rotations[start : start + size] for start in range(0, len(rotations), size)]


def _forces(forces: FloatArray | None) -> FloatArray:
    assert forces is not None
    return forces
