"""The validator passes a sound potential, and every check catches a fault of its kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
from tests.evaluation.toy import MorsePotential, copper, molecule
from tests.potential_contract import PotentialContract

from equibit.evaluation.validation import (
    CHECKS,
    STAIRCASE,
    probe,
    probe_crystals,
    probe_molecules,
    run_check,
    validate_potential,
)
from equibit.structures import (
    ConfigError,
    Potential,
    PotentialInfo,
    Prediction,
    Structure,
    StructureError,
)


class TestMorse(PotentialContract):
    """The contract itself, on a potential that is plain arithmetic."""

    dtypes = ("float64",)

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls, dtype: str) -> Potential:
        return MorsePotential(dtype=dtype)


Edit = Callable[[Structure, Prediction], Prediction]


@dataclass(frozen=True)
class Faulty:
    """A sound potential whose inputs or answers are spoilt."""

    edit: Edit = lambda structure, prediction: prediction
    prepare: Callable[[Structure], Structure] = lambda structure: structure
    spoil_batch: Callable[[list[Prediction]], list[Prediction]] = lambda predictions: predictions
    sound: MorsePotential = field(default_factory=MorsePotential)

    @property
    def info(self) -> PotentialInfo:
        return self.sound.info

    def compute(
        self, structures: Sequence[Structure], *, forces: bool = True, stress: bool = False
    ) -> list[Prediction]:
        prepared = [self.prepare(structure) for structure in structures]
        answers = self.sound.compute(prepared, forces=forces, stress=stress)
        edited = [
            self.edit(structure, answer)
            for structure, answer in zip(prepared, answers, strict=True)
        ]
        return self.spoil_batch(edited)


def shift_atoms(amount: Callable[[Structure], np.ndarray]) -> Edit:
    """Adds an energy per atom, and leaves forces and stress alone."""

    def edit(structure: Structure, prediction: Prediction) -> Prediction:
        atomic = prediction.atomic_energies + amount(structure)
        return replace(prediction, energy=float(atomic.sum()), atomic_energies=atomic)

    return edit


def scale_forces(factor: Callable[[Structure], np.ndarray]) -> Edit:
    def edit(structure: Structure, prediction: Prediction) -> Prediction:
        if prediction.forces is None:
            return prediction
        return replace(prediction, forces=prediction.forces * factor(structure))

    return edit


def handedness(structure: Structure) -> np.ndarray:
    """Changes sign in the mirror, and stays the same when turned."""
    a, b, c = (structure.positions[k % len(structure)] for k in (1, 2, 3))
    origin = structure.positions[0]
    return np.full(len(structure), 1e-6 * np.dot(a - origin, np.cross(b - origin, c - origin)))


def _rotating(prediction_offset: float) -> Edit:
    def edit(structure: Structure, prediction: Prediction) -> Prediction:
        if prediction.forces is None:
            return prediction
        arms = structure.positions - structure.positions.mean(axis=0)
        swirl = np.cross([0.0, 0.0, prediction_offset], arms)
        return replace(prediction, forces=prediction.forces + swirl)

    return edit


def _noisy() -> Edit:
    generator = np.random.default_rng(0)
    return shift_atoms(lambda s: 1e-13 * generator.standard_normal(len(s)))


def _without_periodicity(structure: Structure) -> Structure:
    return replace(structure, pbc=np.zeros(3, bool)) if structure.pbc.sum() == 2 else structure


class SeesFar(MorsePotential):
    """Claims a shorter cutoff than it has."""

    @property
    def info(self) -> PotentialInfo:
        return replace(super().info, cutoff=self.cutoff - 0.5)


class HardCutoff(MorsePotential):
    def _pair(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        decay = np.exp(-self.width * (r - self.length))
        return self.depth * ((1 - decay) ** 2 - 1), 2 * self.depth * self.width * (
            1 - decay
        ) * decay


class Careless(MorsePotential):
    """Knows no unknown element, and reports impossible input in its own way."""

    def compute(
        self, structures: Sequence[Structure], *, forces: bool = True, stress: bool = False
    ) -> list[Prediction]:
        known = [
            replace(s, numbers=np.where(np.isin(s.numbers, self.elements), s.numbers, 1))
            for s in structures
        ]
        try:
            return super().compute(known, forces=forces, stress=stress)
        except StructureError as error:
            raise RuntimeError(str(error)) from error


FAULTS: dict[str, tuple[str, Potential]] = {
    "drops an empty list's answer": (
        "interface",
        Faulty(spoil_batch=lambda answers: answers or [None]),  # type: ignore[list-item]
    ),
    "parts do not add up": (
        "interface",
        Faulty(edit=lambda s, p: replace(p, energy=p.energy + 1e-6)),
    ),
    "NaN forces": ("interface", Faulty(edit=scale_forces(lambda s: np.float64("nan")))),
    "answers vary": ("repeatability", Faulty(edit=_noisy())),
    "a preferred axis": ("rotation", MorsePotential(tilt=1e-6)),
    "a preferred hand": ("reflection", Faulty(edit=shift_atoms(handedness))),
    "a preferred place": (
        "translation",
        Faulty(edit=shift_atoms(lambda s: 1e-6 * s.positions[:, 0])),
    ),
    "a preferred order": (
        "permutation",
        Faulty(edit=shift_atoms(lambda s: 1e-6 * np.arange(len(s)))),
    ),
    "leaks between structures": (
        "batch",
        Faulty(
            spoil_batch=lambda answers: [
                replace(
                    p, forces=None if p.forces is None else p.forces + 1e-6 * (len(answers) - 1)
                )
                for p in answers
            ]
        ),
    ),
    "forces too large by 0.1 %": (
        "gradient",
        Faulty(edit=scale_forces(lambda s: np.float64(1.001))),
    ),
    "stress of the wrong sign": (
        "stress",
        Faulty(edit=lambda s, p: p if p.stress is None else replace(p, stress=-p.stress)),
    ),
    "a hard cutoff": ("cutoff", HardCutoff()),
    "sees beyond its cutoff": ("isolation", SeesFar()),
    "a force on a lone atom": (
        "single_atoms",
        Faulty(edit=lambda s, p: p if p.forces is None else replace(p, forces=p.forces + 1e-12)),
    ),
    "breaks planes": (
        "degenerate",
        Faulty(edit=_rotating(1e-6)),
    ),
    "pushes itself": (
        "net_force",
        Faulty(edit=lambda s, p: p if p.forces is None else replace(p, forces=p.forces + 1e-6)),
    ),
    "turns itself": ("net_torque", Faulty(edit=_rotating(1e-6))),
    "forgets slabs": ("periodicity", Faulty(prepare=_without_periodicity)),
    "is not extensive": (
        "periodicity",
        Faulty(edit=shift_atoms(lambda s: np.full(len(s), 1e-6 * len(s)))),
    ),
    "takes any element": ("unknown_element", Careless()),
    "raises something else": ("impossible_structures", Careless()),
}


@pytest.mark.parametrize(("check", "potential"), FAULTS.values(), ids=FAULTS)
def test_fault_is_caught(check: str, potential: Potential) -> None:
    result = run_check(check, probe(potential))
    assert result.outcome == "failed"
    assert result.detail


def test_every_check_has_a_fault() -> None:
    assert {check for check, _ in FAULTS.values()} == set(CHECKS)


def test_sound_potential_passes_and_says_so() -> None:
    report = validate_potential(MorsePotential(), [molecule(), copper()])
    assert report.passed, str(report)
    assert [result.name for result in report.results] == list(CHECKS)
    lines = str(report).splitlines()
    assert lines[0] == f"morse (fp32, float64): {len(CHECKS)} passed, 0 failed, 0 skipped"
    assert len(lines) == 1 + len(CHECKS)
    assert json.loads(json.dumps(report.to_json()))["results"][0]["outcome"] == "passed"


def test_faulty_potential_fails_and_the_report_says_where() -> None:
    report = validate_potential(MorsePotential(tilt=1e-6))
    assert not report.passed
    assert "failed  rotation" in str(report)
    assert "of the turned" in str(report)


def test_skipped_checks_keep_their_reason() -> None:
    report = validate_potential(MorsePotential(step=1e-3), skip=STAIRCASE)
    skipped = {result.name for result in report.results if result.outcome == "skipped"}
    assert skipped == set(STAIRCASE)
    assert "staircase" in str(report)


def test_own_structures_are_used() -> None:
    """A fault of structures of four atoms, which no built-in probe has."""
    fault = Faulty(edit=shift_atoms(lambda s: 1e-6 * s.positions[:, 0] * (len(s) == 4)))
    assert run_check("rotation", probe(fault)).outcome == "passed"
    result = run_check("rotation", probe(fault, [copper()]))
    assert result.outcome == "failed"
    assert "structure 0" in result.detail


def test_unknown_skip_and_unknown_dtype_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown check 'rotations'"):
        validate_potential(MorsePotential(), skip={"rotations": "typing"})
    half = SimpleNamespace(info=replace(MorsePotential().info, dtype="bfloat16"))
    with pytest.raises(ConfigError, match="bfloat16"):
        validate_potential(half)  # type: ignore[arg-type]


@pytest.mark.parametrize("elements", [(1,), (1, 6), (1, 6, 7, 8, 9, 29)])
def test_probes_exist_for_any_elements(elements: tuple[int, ...]) -> None:
    for structure in [*probe_molecules(elements).values(), *probe_crystals(elements).values()]:
        assert set(structure.numbers) <= set(elements)
    molecules = probe_molecules(elements)
    for structure in molecules.values():
        distances = np.linalg.norm(structure.positions[:, None] - structure.positions, axis=-1)
        assert distances[~np.eye(len(structure), dtype=bool)].min() > 0.9
