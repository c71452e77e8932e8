"""Does a potential keep its promises? The same checks for every implementation, at run time.

A user who plugs in a potential of their own calls :func:`validate_potential`; the package's tests
run the same checks on every network and every quantised form.

Deviations are relative. Forces are measured against the largest force on the structure (or, where
symmetry cancels it, against the median of that over all probes); energies against the largest
difference between an atom's energy and the median of its element over all probes, which the choice
of a reference energy does not move, or against that force times 1 Å; stresses against the largest
stress.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from equibit.evaluation.equivariance import haar_rotations
from equibit.evaluation.record import Record
from equibit.structures.errors import ConfigError, EquibitError, ModelError, StructureError
from equibit.structures.potential import Potential, Prediction
from equibit.structures.structure import MAX_ATOMIC_NUMBER, FloatArray, IntArray, Structure

RELATIVE_TOLERANCE: Mapping[str, float] = MappingProxyType({"float64": 1e-10, "float32": 1e-5})

STAIRCASE: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        ("gradient", "stress", "cutoff", "net_torque"),
        "the energy is a staircase: rounded activations have no gradient",
    )
)
"""Checks to skip for a potential that rounds activations, with the reason."""

_STEPS = (2e-2, 3e-3, 3e-4)  # of numerical differentiation: Å, or relative strain

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class CheckResult(Record):
    """Outcome of one check.

    Attributes:
        name: of the check.
        claim: what it demands.
        outcome: passed, failed or skipped.
        deviation: the worst relative deviation, or None where there is no number to give.
        tolerance: what it was held against, or None.
        detail: where the worst deviation is, what went wrong, or why the check was skipped.
    """

    name: str
    claim: str
    outcome: Outcome
    deviation: float | None
    tolerance: float | None
    detail: str


@dataclass(frozen=True)
class ValidationReport(Record):
    """Outcomes of all checks on one potential.

    Attributes:
        name, dtype, recipe: of the potential.
        results: one per check.
    """

    name: str
    dtype: str
    recipe: str
    results: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        """No check failed."""
        return all(result.outcome != "failed" for result in self.results)

    def __str__(self) -> str:
        width = max(len(result.name) for result in self.results)
        counts = {
            outcome: sum(result.outcome == outcome for result in self.results)
            for outcome in ("passed", "failed", "skipped")
        }
        lines = [
            f"{self.name} ({self.recipe}, {self.dtype}): "
            + ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        ]
        for result in self.results:
            number = "" if result.deviation is None else f"{result.deviation:.1e}"
            bound = "" if result.tolerance is None else f"≤ {result.tolerance:.0e}"
            text = result.claim if result.outcome == "passed" else result.detail
            lines.append(
                f"{result.outcome:<8}{result.name:<{width + 2}}{number:>8} {bound:<8}  {text}"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class _Deviation:
    """A relative deviation, or a broken promise that has no number (tolerance None)."""

    where: str
    value: float
    tolerance: float | None

    @property
    def excess(self) -> float:
        ratio = self.value if self.tolerance is None else self.value / self.tolerance
        return float("inf") if np.isnan(ratio) else ratio


@dataclass(frozen=True)
class _Probes:
    """A potential and the structures it is asked about."""

    potential: Potential
    molecules: Mapping[str, Structure]
    crystals: Mapping[str, Structure]
    tolerance: float
    seed: int

    def one(self, structure: Structure, *, stress: bool = False) -> Prediction:
        return self.many([structure], stress=stress)[0]

    def many(self, structures: Sequence[Structure], *, stress: bool = False) -> list[Prediction]:
        return self.potential.compute(structures, forces=True, stress=stress)

    def changed(self, change: Callable[[Structure], Structure]) -> Iterator[_Changed]:
        """Every probe after ``change``; small molecules in one batch, all others in another."""
        small = {name for name, s in self.molecules.items() if len(s) <= 12}
        for names in (small, self.structures.keys() - small):
            ordered = [name for name in self.structures if name in names]
            changed = [change(self.structures[name]) for name in ordered]
            for name, structure, after in zip(ordered, changed, self.many(changed), strict=True):
                yield name, structure, after, self.reference[name]

    @cached_property
    def reference(self) -> dict[str, Prediction]:
        """Predictions of all probes as they are, each asked for alone."""
        return {name: self.one(structure) for name, structure in self.structures.items()}

    @cached_property
    def structures(self) -> dict[str, Structure]:
        return {**self.molecules, **self.crystals}

    @cached_property
    def force_floor(self) -> float:
        largest = [np.abs(_forces(prediction)).max() for prediction in self.reference.values()]
        return float(np.median(largest)) or 1.0

    def force_scale(self, prediction: Prediction) -> float:
        return max(float(np.abs(_forces(prediction)).max()), self.force_floor)

    @cached_property
    def typical_energies(self) -> dict[int, float]:
        """Median atomic energy of each element over the probes."""
        numbers = np.concatenate([s.numbers for s in self.structures.values()])
        energies = np.concatenate([p.atomic_energies for p in self.reference.values()])
        return {int(z): float(np.median(energies[numbers == z])) for z in np.unique(numbers)}

    def energy_scale(self, structure: Structure, prediction: Prediction) -> float:
        """Of one atom."""
        typical = np.array([self.typical_energies[int(z)] for z in structure.numbers])
        spread = float(np.abs(prediction.atomic_energies - typical).max())
        return max(spread, self.force_scale(prediction))

    def deviations(
        self, where: str, structure: Structure, got: Prediction, expected: Prediction
    ) -> Iterator[_Deviation]:
        """Energies, atomic energies and forces of ``structure`` against what they should be."""
        n_atoms = len(structure)
        scale = self.energy_scale(structure, expected)
        # Totals of thousands of eV carry their own float64 rounding.
        noise = 8 * np.finfo(np.float64).eps * abs(expected.energy)
        energy_error = max(0.0, abs(got.energy - expected.energy) - noise)
        yield self.deviation(f"energy of {where}", energy_error, scale * n_atoms)
        atomic = np.abs(got.atomic_energies - expected.atomic_energies).max()
        yield self.deviation(f"atomic energies of {where}", max(0.0, atomic - noise), scale)
        error = np.abs(_forces(got) - _forces(expected)).max()
        yield self.deviation(f"forces of {where}", error, self.force_scale(expected))

    def deviation(self, where: str, error: float, scale: float) -> _Deviation:
        return _Deviation(where, float(error) / scale, self.tolerance)


_Changed = tuple[str, Structure, Prediction, Prediction]  # name, structure, after, before
_Check = Callable[[_Probes], Iterator[_Deviation]]
CHECKS: dict[str, tuple[str, _Check]] = {}
"""Claim and implementation of every check by name."""


def _check(claim: str) -> Callable[[_Check], _Check]:
    def register(function: _Check) -> _Check:
        CHECKS[function.__name__.removeprefix("_check_")] = (claim, function)
        return function

    return register


def validate_potential(
    potential: Potential,
    structures: Sequence[Structure] = (),
    *,
    skip: Mapping[str, str] = MappingProxyType({}),
    tolerance: float | None = None,
    seed: int = 0,
) -> ValidationReport:
    """Hold a potential against the interface: symmetries, gradients, cutoff, cells, bad input.

    Args:
        potential: any object that answers :class:`equibit.structures.Potential`.
        structures: the caller's own; small built-in probes of the potential's elements, among them
            linear, planar, tetrahedral and periodic ones, are always used too.
        skip: names of checks to leave out, each with the reason, e.g. :data:`STAIRCASE`.
        tolerance: relative; by default 1e-10 for float64 and 1e-5 for float32.
        seed: of the random probes, rotations and directions.

    Raises:
        ConfigError: an unknown check in ``skip``, or no default tolerance for the dtype.
    """
    unknown = sorted(skip.keys() - CHECKS.keys())
    if unknown:
        raise ConfigError(f"unknown check {unknown[0]!r} to skip; known: {', '.join(CHECKS)}")
    probes = probe(potential, structures, tolerance=tolerance, seed=seed)
    info = potential.info
    return ValidationReport(
        name=info.name,
        dtype=info.dtype,
        recipe=info.recipe,
        results=tuple(
            CheckResult(name, CHECKS[name][0], "skipped", None, None, skip[name])
            if name in skip
            else run_check(name, probes)
            for name in CHECKS
        ),
    )


def probe(
    potential: Potential,
    structures: Sequence[Structure] = (),
    *,
    tolerance: float | None = None,
    seed: int = 0,
) -> _Probes:
    """What :func:`run_check` needs; build it once for several checks."""
    info = potential.info
    if tolerance is None:
        if info.dtype not in RELATIVE_TOLERANCE:
            raise ConfigError(
                f"no default tolerance for dtype {info.dtype!r}; give `tolerance` explicitly"
            )
        tolerance = RELATIVE_TOLERANCE[info.dtype]
    own = {f"structure {k}": structure for k, structure in enumerate(structures)}
    return _Probes(
        potential,
        molecules={
            **{name: s for name, s in own.items() if not s.periodic},
            **probe_molecules(info.elements, seed),
        },
        crystals={
            **{name: s for name, s in own.items() if s.pbc.all()},
            **probe_crystals(info.elements, seed),
        },
        tolerance=tolerance,
        seed=seed,
    )


def run_check(name: str, probes: _Probes) -> CheckResult:
    """One check by its name in :data:`CHECKS`; what the potential raises is a failure."""
    claim, function = CHECKS[name]
    try:
        worst = max(function(probes), key=lambda deviation: deviation.excess)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        return CheckResult(name, claim, "failed", None, None, detail)
    outcome: Outcome = "passed" if worst.excess <= 1 else "failed"
    value = None if worst.tolerance is None else float(worst.value)
    return CheckResult(name, claim, outcome, value, worst.tolerance, worst.where)


# Probes


def probe_molecules(elements: Sequence[int], seed: int = 0) -> dict[str, Structure]:
    """Small molecules of the given elements, shapes that break careless code among them."""
    a, b, c = (elements[k % len(elements)] for k in range(3))
    ring = np.array([[np.cos(t), np.sin(t), 0.0] for t in np.arange(6) * np.pi / 3])
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    axis = np.array([1.0, 0.0, 0.0])
    return {
        "random molecule": _random_molecule(elements, 9, seed),
        "large molecule": _random_molecule(elements, 40, seed + 1),
        "pair": _structure([a, b], [0.0 * axis, 1.1 * axis]),
        "linear molecule": _structure([c, b, c], [-1.16 * axis, 0 * axis, 1.16 * axis]),
        "tetrahedron": _structure([b, a, a, a, a], [np.zeros(3), *(1.09 * corners)]),
        "planar ring": _structure([b] * 6 + [a] * 6, [*(1.39 * ring), *(2.48 * ring)]),
        "bent planar molecule": _structure(
            [c, a, a], [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]
        ),
    }


def probe_crystals(elements: Sequence[int], seed: int = 0) -> dict[str, Structure]:
    """Triclinic, and smaller than the cutoff, so that atoms see their own images."""
    a, b = elements[0], elements[1 % len(elements)]
    generator = np.random.default_rng(seed)
    cell = np.array([[3.1, 0.0, 0.0], [0.7, 3.3, 0.0], [-0.4, 0.6, 3.6]])
    fractional = np.array([[0.1, 0.1, 0.1], [0.55, 0.5, 0.45], [0.15, 0.6, 0.6]])
    positions = (fractional + 0.03 * generator.standard_normal((3, 3))) @ cell
    return {
        "triclinic crystal": _structure([a, b, a], positions, cell=cell),
        "one-atom crystal": _structure([a], [[0.2, 0.1, 0.3]], cell=1.9 * np.eye(3)),
    }


def _structure(
    numbers: npt.ArrayLike, positions: npt.ArrayLike, cell: FloatArray | None = None
) -> Structure:
    """Periodic in all directions where there is a cell."""
    return Structure(
        np.asarray(numbers),
        np.asarray(positions, dtype=np.float64),
        cell=cell,
        pbc=np.full(3, cell is not None),
    )


def _random_molecule(elements: Sequence[int], n_atoms: int, seed: int) -> Structure:
    """Atoms at least 1 Å apart, each within 1.6 Å of an earlier one."""
    generator = np.random.default_rng(seed)
    positions = [np.zeros(3)]
    while len(positions) < n_atoms:
        step = generator.standard_normal(3)
        step *= generator.uniform(1.0, 1.6) / np.linalg.norm(step)
        candidate = positions[generator.integers(len(positions))] + step
        if min(np.linalg.norm(candidate - other) for other in positions) >= 1.0:
            positions.append(candidate)
    return _structure(generator.choice(elements, n_atoms), positions)


# Checks


@_check("answers the interface: order, shapes, finite numbers, parts that add up, an empty list")
def _check_interface(probes: _Probes) -> Iterator[_Deviation]:
    structures = list(probes.structures.values())
    predictions = probes.many(structures)
    yield _promise("an empty list gives an empty list", probes.many([]) == [])
    yield _promise("one prediction per structure", len(predictions) == len(structures))
    energies_only = probes.potential.compute(structures, forces=False)
    for (name, structure), prediction, bare in zip(
        probes.structures.items(), predictions, energies_only, strict=True
    ):
        n_atoms = len(structure)
        shapes = prediction.atomic_energies.shape, _forces(prediction).shape
        yield _promise(f"shapes of {name}", shapes == ((n_atoms,), (n_atoms, 3)))
        finite = np.isfinite(prediction.energy) and np.isfinite(_forces(prediction)).all()
        yield _promise(f"finite numbers for {name}", bool(finite))
        yield _promise(f"no stress unasked for {name}", prediction.stress is None)
        yield _promise(f"no forces unasked for {name}", bare.forces is None)
        scale = probes.force_scale(prediction) * n_atoms + abs(prediction.energy)
        parts = abs(prediction.atomic_energies.sum() - prediction.energy)
        yield _Deviation(f"sum of the atomic energies of {name}", parts / scale, 1e-12)
        yield probes.deviation(
            f"energy without forces of {name}", abs(bare.energy - prediction.energy), scale
        )


@_check("the same question gets the same answer, and leaves the structures alone")
def _check_repeatability(probes: _Probes) -> Iterator[_Deviation]:
    structures = list(probes.structures.values())
    before = [structure.positions.copy() for structure in structures]
    first, second = probes.many(structures), probes.many(structures)
    for name, structure, positions, one, two in zip(
        probes.structures, structures, before, first, second, strict=True
    ):
        same = one.energy == two.energy and np.array_equal(_forces(one), _forces(two))
        yield _promise(f"the same bits for {name}", same)
        yield _promise(f"{name} is unchanged", np.array_equal(structure.positions, positions))


@_check("energies are invariant and forces turn with the structure")
def _check_rotation(probes: _Probes) -> Iterator[_Deviation]:
    yield from _turned(probes, improper=False)


@_check("reflections too")
def _check_reflection(probes: _Probes) -> Iterator[_Deviation]:
    yield from _turned(probes, improper=True)


def _turned(probes: _Probes, improper: bool) -> Iterator[_Deviation]:
    rotations = haar_rotations(2, seed=probes.seed)
    if improper:
        rotations = np.concatenate([-rotations[:1], np.diag([1.0, 1.0, -1.0])[None]])
    for rotation in rotations:

        def turn(structure: Structure, rotation: FloatArray = rotation) -> Structure:
            return structure.rotated(rotation)

        for name, structure, after, before in probes.changed(turn):
            expected = replace(before, forces=_forces(before) @ rotation.T)
            yield from probes.deviations(f"the turned {name}", structure, after, expected)


@_check("nothing depends on where the structure is")
def _check_translation(probes: _Probes) -> Iterator[_Deviation]:
    def move(structure: Structure) -> Structure:
        return replace(structure, positions=structure.positions + np.array([11.3, -7.9, 3.1]))

    for name, structure, after, before in probes.changed(move):
        yield from probes.deviations(f"the shifted {name}", structure, after, before)


@_check("renumbering atoms renumbers the answer")
def _check_permutation(probes: _Probes) -> Iterator[_Deviation]:
    def order(n_atoms: int) -> IntArray:
        return np.random.default_rng(probes.seed).permutation(n_atoms)

    for name, structure, after, before in probes.changed(lambda s: _subset(s, order(len(s)))):
        expected = _pick(before, order(len(structure)))
        yield from probes.deviations(f"the renumbered {name}", structure, after, expected)


@_check("a result does not depend on what else is in the batch")
def _check_batch(probes: _Probes) -> Iterator[_Deviation]:
    names = list(probes.structures)
    small = [name for name in probes.molecules if len(probes.structures[name]) <= 12]
    for batch in (names, names[::-1], small, small[::-1], [small[0]] * 3):
        predictions = probes.many([probes.structures[name] for name in batch])
        for name, prediction in zip(batch, predictions, strict=True):
            yield from probes.deviations(
                f"{name} in a batch", probes.structures[name], prediction, probes.reference[name]
            )


@_check("forces are the negative gradient of the energy")
def _check_gradient(probes: _Probes) -> Iterator[_Deviation]:
    generator = np.random.default_rng(probes.seed)
    for name, structure in probes.structures.items():
        before = probes.reference[name]
        direction = generator.standard_normal((len(structure), 3))
        direction /= np.sqrt(np.mean(np.sum(direction**2, axis=1)))

        def displaced(
            step: float, structure: Structure = structure, direction: FloatArray = direction
        ) -> Structure:
            return replace(structure, positions=structure.positions + step * direction)

        expected = -float((_forces(before) * direction).sum())
        error = float(np.abs(_slopes(probes, displaced) - expected).min())
        # Numerical differentiation loses half of the digits.
        yield _Deviation(
            f"forces of {name} along a random direction",
            error / (probes.force_scale(before) * float(np.linalg.norm(direction))),
            probes.tolerance**0.5,
        )


@_check("stress is the strain gradient of the energy per volume")
def _check_stress(probes: _Probes) -> Iterator[_Deviation]:
    generator = np.random.default_rng(probes.seed)
    for name, structure in probes.crystals.items():
        assert structure.cell is not None
        stress = probes.one(structure, stress=True).stress
        yield _promise(f"a stress for {name}", stress is not None)
        assert stress is not None
        volume = abs(np.linalg.det(structure.cell))
        for _ in range(2):
            strain = generator.standard_normal((3, 3))
            strain = (strain + strain.T) / np.linalg.norm(strain + strain.T)

            def strained(
                step: float, structure: Structure = structure, strain: FloatArray = strain
            ) -> Structure:
                deformation = np.eye(3) + step * strain
                assert structure.cell is not None
                return replace(
                    structure,
                    positions=structure.positions @ deformation,
                    cell=structure.cell @ deformation,
                )

            slopes = _slopes(probes, strained) / volume
            error = float(np.abs(slopes - float((stress * strain).sum())).min())
            yield _Deviation(
                f"stress of {name} along a random strain",
                error / float(np.abs(stress).max() or 1.0),
                probes.tolerance**0.5,
            )
        rotation = haar_rotations(1, seed=probes.seed)[0]
        turned = probes.one(structure.rotated(rotation), stress=True).stress
        assert turned is not None
        error = float(np.abs(turned - rotation @ stress @ rotation.T).max())
        yield probes.deviation(
            f"stress of the turned {name}", error, float(np.abs(stress).max() or 1.0)
        )


@_check("energy and forces are continuous where a neighbour crosses the cutoff")
def _check_cutoff(probes: _Probes) -> Iterator[_Deviation]:
    info = probes.potential.info
    gap = 1e-5
    for element in info.elements:

        def approached(distance: float, element: int = element) -> Structure:
            numbers = [info.elements[0], info.elements[-1], element]
            return _structure(numbers, [[0.0, 1.1, 0.0], [0.0, 0.0, 0.0], [distance, 0.0, 0.0]])

        inside, outside, *nearer = probes.many(
            [
                approached(info.cutoff + shift)
                for shift in (-gap, gap, -0.1 * info.cutoff, -0.2 * info.cutoff, -0.3 * info.cutoff)
            ]
        )
        for quantity, jump, effects in (
            (
                "energy",
                abs(inside.energy - outside.energy),
                [abs(near.energy - outside.energy) for near in nearer],
            ),
            (
                "forces",
                np.abs(_forces(inside) - _forces(outside)).max(),
                [np.abs(_forces(near) - _forces(outside)).max() for near in nearer],
            ),
        ):
            # A jump counts against what the neighbour does inside, not against bonded forces.
            noise = probes.tolerance * probes.force_scale(outside) * 3
            yield _Deviation(
                f"jump of the {quantity} as element {element} crosses {info.cutoff} Å",
                float(jump) / (max(effects) + noise * 1e3),
                1e-3,
            )


@_check("beyond the cutoff atoms and molecules do not see each other")
def _check_isolation(probes: _Probes) -> Iterator[_Deviation]:
    cutoff = probes.potential.info.cutoff
    name = "random molecule"
    molecule = probes.molecules[name]
    alone = probes.reference[name]
    reach = float(molecule.positions[:, 0].max())
    for gap in (cutoff + 1e-6, 4 * cutoff):
        for other_name in ("pair", "linear molecule"):
            other = probes.molecules[other_name]
            left = float(other.positions[:, 0].min())
            shifted = other.positions + np.array([reach + gap - left, 0, 0])
            both = _joined(molecule, replace(other, positions=shifted))
            expected = _sum(alone, probes.reference[other_name])
            where = f"{name} and {other_name}, {gap:.2f} Å apart"
            yield from probes.deviations(where, both, probes.one(both), expected)


@_check("a lone atom of any element has a finite energy and exactly no force")
def _check_single_atoms(probes: _Probes) -> Iterator[_Deviation]:
    elements = probes.potential.info.elements
    atoms = [_structure([z], [[0.3, -0.2, 0.1]]) for z in elements]
    alone = [probes.one(atom) for atom in atoms]
    for element, atom, prediction, again in zip(
        elements, atoms, alone, probes.many(atoms), strict=True
    ):
        yield _promise(f"finite energy of element {element}", bool(np.isfinite(prediction.energy)))
        yield _promise(f"no force on element {element}", not np.any(_forces(prediction)))
        where = f"element {element} in a batch of atoms"
        yield from probes.deviations(where, atom, again, prediction)
    distance = 2 * probes.potential.info.cutoff
    spread = _structure(elements, [[distance * k, 0, 0] for k in range(len(elements))])
    expected = alone[0]
    for prediction in alone[1:]:
        expected = _sum(expected, prediction)
    yield from probes.deviations("all elements far apart", spread, probes.one(spread), expected)


@dataclass(frozen=True)
class _Shape:
    """Cartesian components of the forces that symmetry forbids, and atoms that it makes alike."""

    forbidden: tuple[int, ...] = ()
    equivalent: tuple[Sequence[int], ...] = ()


_SHAPES = {
    "pair": _Shape((1, 2)),
    "linear molecule": _Shape((1, 2), ((0, 2),)),
    "tetrahedron": _Shape((), (range(1, 5),)),
    "planar ring": _Shape((2,), (range(6), range(6, 12))),
    "bent planar molecule": _Shape((2,)),
}


@_check("forces keep the symmetry of linear, planar and tetrahedral molecules")
def _check_degenerate(probes: _Probes) -> Iterator[_Deviation]:
    for rotation in (np.eye(3), haar_rotations(1, seed=probes.seed + 1)[0]):
        turned = [probes.molecules[name].rotated(rotation) for name in _SHAPES]
        for (name, shape), prediction in zip(_SHAPES.items(), probes.many(turned), strict=True):
            forces = _forces(prediction) @ rotation
            scale = probes.force_scale(prediction)
            across = np.abs(forces[:, list(shape.forbidden)]).max(initial=0.0)
            yield probes.deviation(f"{name}: force across its plane or axis", across, scale)
            sizes = np.linalg.norm(forces, axis=1)
            for group in shape.equivalent:
                spread = np.ptp(sizes[list(group)])
                yield probes.deviation(f"{name}: forces on equivalent atoms", spread, scale)


@_check("forces add up to zero")
def _check_net_force(probes: _Probes) -> Iterator[_Deviation]:
    for name, prediction in probes.reference.items():
        net = np.abs(_forces(prediction).sum(axis=0)).max()
        scale = probes.force_scale(prediction) * len(probes.structures[name])
        yield probes.deviation(f"net force on {name}", net, scale)


@_check("torques on a molecule add up to zero")
def _check_net_torque(probes: _Probes) -> Iterator[_Deviation]:
    for name, molecule in probes.molecules.items():
        prediction = probes.reference[name]
        arms = molecule.positions - molecule.positions.mean(axis=0)
        torque = np.abs(np.cross(arms, _forces(prediction)).sum(axis=0)).max()
        reach = float(np.linalg.norm(arms, axis=1).sum())
        scale = probes.force_scale(prediction) * max(reach, 1.0)
        yield probes.deviation(f"net torque on {name}", torque, scale)


@_check("a doubled cell doubles the energy, and lattice translations change nothing")
def _check_periodicity(probes: _Probes) -> Iterator[_Deviation]:
    generator = np.random.default_rng(probes.seed)
    for name, crystal in probes.crystals.items():
        before = probes.reference[name]
        assert crystal.cell is not None
        shifts = generator.integers(-2, 3, size=(len(crystal), 3)) @ crystal.cell
        moved = replace(crystal, positions=crystal.positions + shifts)
        where = f"{name}, atoms in other cells"
        yield from probes.deviations(where, moved, probes.one(moved), before)
        for axis in range(3):
            image = replace(crystal, positions=crystal.positions + crystal.cell[axis])
            cell = crystal.cell.copy()
            cell[axis] *= 2
            doubled = replace(_joined(crystal, image), cell=cell)
            where = f"{name} doubled along {'abc'[axis]}"
            expected = _sum(before, before)
            yield from probes.deviations(where, doubled, probes.one(doubled), expected)
        slab = replace(crystal, pbc=np.array([True, True, False]))
        far = replace(crystal, cell=np.vstack([crystal.cell[:2], _far(crystal, probes)]))
        where = f"{name} as a slab, against its layer in vacuum"
        yield from probes.deviations(where, slab, probes.one(slab), probes.one(far))
    name = "random molecule"
    molecule = probes.molecules[name]
    room = float(np.ptp(molecule.positions, axis=0).max()) + 2 * probes.potential.info.cutoff
    for pbc in ([True] * 3, [True, False, True]):
        boxed = replace(molecule, cell=room * np.eye(3), pbc=np.array(pbc))
        where = f"{name} in a large box"
        yield from probes.deviations(where, boxed, probes.one(boxed), probes.reference[name])


@_check("an element it never saw is refused with a ModelError that names the atom")
def _check_unknown_element(probes: _Probes) -> Iterator[_Deviation]:
    known = set(probes.potential.info.elements)
    unknown = next((z for z in range(MAX_ATOMIC_NUMBER, 0, -1) if z not in known), None)
    if unknown is None:
        yield _promise("it knows every element", True)
        return
    numbers = [min(known), min(known), unknown]
    structure = _structure(numbers, [[0.0, 0.0, 0.0], [1.1, 0.0, 0.0], [0.0, 1.1, 0.0]])
    yield from _refused(probes, structure, ModelError, "atom 2")


@_check("coinciding atoms, and a stress without a cell, are refused with a StructureError")
def _check_impossible_structures(probes: _Probes) -> Iterator[_Deviation]:
    element = probes.potential.info.elements[0]
    same = _structure([element] * 3, [[0, 0, 0], [1, 0, 0], [1, 0, 0]])
    yield from _refused(probes, same, StructureError, "")
    images = _structure([element] * 2, [[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]], cell=4.0 * np.eye(3))
    yield from _refused(probes, images, StructureError, "")
    yield from _refused(probes, probes.molecules["pair"], StructureError, "", stress=True)


# Arithmetic on structures and predictions


def _forces(prediction: Prediction) -> FloatArray:
    assert prediction.forces is not None
    return prediction.forces


def _promise(what: str, kept: bool) -> _Deviation:
    return _Deviation(what, 0.0 if kept else float("inf"), None)


def _refused(
    probes: _Probes,
    structure: Structure,
    kind: type[EquibitError],
    words: str,
    *,
    stress: bool = False,
) -> Iterator[_Deviation]:
    for batch in ([structure], [probes.molecules["pair"], structure]):
        try:
            probes.many(batch, stress=stress)
        except kind as error:
            yield _promise(f"{words!r} is missing from {str(error)!r}", words in str(error))
        else:
            yield _promise(f"nothing was raised; expected {kind.__name__}", False)


def _slopes(probes: _Probes, at: Callable[[float], Structure]) -> FloatArray:
    """dE/ds at s = 0, [8 (E₁ − E₋₁) − (E₂ − E₋₂)]/12h + O(h⁴), for several steps h.

    A step is good or bad by the curvature of the energy and the digits of its arithmetic; a wrong
    force is wrong for all of them. Shape: [n_steps].
    """
    points = probes.potential.compute(
        [at(k * step) for step in _STEPS for k in (-2, -1, 1, 2)], forces=False
    )
    energies = np.array([point.energy for point in points]).reshape(len(_STEPS), 4)
    slopes = 8 * (energies[:, 2] - energies[:, 1]) - (energies[:, 3] - energies[:, 0])
    return slopes / (12 * np.array(_STEPS))


def _far(crystal: Structure, probes: _Probes) -> FloatArray:
    """A third lattice vector that puts layers out of each other's sight."""
    assert crystal.cell is not None
    normal = np.cross(crystal.cell[0], crystal.cell[1])
    height = float(np.abs(np.linalg.norm(crystal.positions, axis=1)).max())
    reach = 2 * height + 2 * probes.potential.info.cutoff
    return reach * normal / np.linalg.norm(normal)


def _subset(structure: Structure, order: IntArray) -> Structure:
    return Structure(
        structure.numbers[order],
        structure.positions[order],
        cell=structure.cell,
        pbc=structure.pbc,
    )


def _pick(prediction: Prediction, order: IntArray) -> Prediction:
    return Prediction(
        prediction.energy, prediction.atomic_energies[order], _forces(prediction)[order]
    )


def _joined(first: Structure, second: Structure) -> Structure:
    return replace(
        first,
        numbers=np.concatenate([first.numbers, second.numbers]),
        positions=np.concatenate([first.positions, second.positions]),
        energy=None,
        forces=None,
        stress=None,
    )


def _sum(first: Prediction, second: Prediction) -> Prediction:
    return Prediction(
        first.energy + second.energy,
        np.concatenate([first.atomic_energies, second.atomic_energies]),
        np.concatenate([_forces(first), _forces(second)]),
    )
