"""The ASE calculator, driven by ASE's own dynamics, optimisers and filters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from tests.evaluation.toy import MorsePotential, copper, molecule

from equibit.interfaces.ase import Calculator, structure_from_atoms
from equibit.structures import ModelError, Prediction, Structure, StructureError


def _atoms(structure: Structure) -> Atoms:
    return Atoms(
        structure.numbers,
        positions=structure.positions,
        cell=structure.cell,
        pbc=structure.pbc,
        calculator=Calculator(MorsePotential()),
    )


@pytest.mark.parametrize("structure", [molecule(), copper()], ids=["molecule", "crystal"])
def test_forces_are_the_gradient(structure: Structure) -> None:
    atoms = _atoms(structure)
    np.testing.assert_allclose(
        atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-5), atol=1e-7
    )


def test_stress_is_the_strain_derivative() -> None:
    atoms = _atoms(copper())
    stress = atoms.get_stress()
    assert stress.shape == (6,)
    assert np.abs(stress).max() > 1e-3
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-5), atol=1e-8)


def test_all_promised_properties_are_there() -> None:
    atoms = _atoms(copper())
    atoms.get_potential_energy()
    assert set(atoms.calc.results) == set(Calculator.implemented_properties)
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy())
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()


def test_stress_of_a_molecule_is_refused_and_the_rest_works() -> None:
    atoms = _atoms(molecule())
    with pytest.raises(PropertyNotImplementedError, match="periodic in three directions"):
        atoms.get_stress()
    assert np.isfinite(atoms.get_potential_energy())
    atoms.pbc = [True, True, False]
    atoms.cell = [20, 20, 20]
    with pytest.raises(PropertyNotImplementedError, match="three directions"):
        atoms.get_stress()


def test_molecular_dynamics_conserves_energy() -> None:
    atoms = _atoms(molecule(noise=0.0))
    momenta = np.sqrt(units.kB * 200 * atoms.get_masses())[:, None]
    atoms.set_momenta(momenta * np.random.default_rng(0).standard_normal((len(atoms), 3)))
    before = atoms.get_total_energy()
    start = atoms.get_kinetic_energy()
    lowest = []
    dynamics = VelocityVerlet(atoms, timestep=0.2 * units.fs)
    dynamics.attach(lambda: lowest.append(atoms.get_kinetic_energy()))
    dynamics.run(100)
    assert max(abs(k - start) for k in lowest) > 0.01
    assert atoms.get_total_energy() == pytest.approx(before, abs=2e-3)


def test_geometry_relaxes() -> None:
    atoms = _atoms(molecule())
    before = atoms.get_potential_energy()
    assert BFGS(atoms, logfile=None).run(fmax=1e-3, steps=300)
    assert atoms.get_potential_energy() < before
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 1e-3


def test_cell_follows_its_stress() -> None:
    """A few steps of a cell filter lower the energy, which wrong signs of the stress would not."""
    atoms = _atoms(copper())
    before = atoms.get_potential_energy()
    BFGS(FrechetCellFilter(atoms), logfile=None, maxstep=0.02).run(fmax=1e-3, steps=3)
    assert atoms.get_potential_energy() < before - 1e-3
    assert not np.allclose(atoms.cell, copper().cell)


@dataclass(frozen=True)
class _Counter(MorsePotential):
    calls: list[int] = field(default_factory=list)

    def compute(
        self, structures: Sequence[Structure], *, forces: bool = True, stress: bool = False
    ) -> list[Prediction]:
        self.calls.append(len(structures))
        return super().compute(structures, forces=forces, stress=stress)


def test_one_call_serves_all_properties_until_atoms_move() -> None:
    potential = _Counter()
    atoms = _atoms(copper())
    atoms.calc = Calculator(potential)
    atoms.get_potential_energy()
    atoms.get_forces()
    atoms.get_stress()
    assert len(potential.calls) == 1
    atoms.positions[0, 0] += 0.01
    atoms.get_forces()
    assert len(potential.calls) == 2


def test_bad_input_is_named() -> None:
    atoms = _atoms(molecule())
    atoms.positions[2, 1] = np.nan
    with pytest.raises(StructureError, match="positions of atom 2"):
        atoms.get_potential_energy()
    with pytest.raises(StructureError, match="at least one atom"):
        structure_from_atoms(Atoms())
    foreign = Atoms("CF", positions=[[0, 0, 0], [1.3, 0, 0]])
    foreign.calc = Calculator(MorsePotential())
    with pytest.raises(ModelError, match="atom 1"):
        foreign.get_potential_energy()
    with pytest.raises(ModelError, match="int is no model"):
        Calculator(3)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="float64"):
        Calculator(MorsePotential(), dtype="float32")


def test_missing_model_is_reported_on_first_use() -> None:
    atoms = Atoms("H2", positions=[[0, 0, 0], [0.7, 0, 0]], calculator=Calculator("no-such-model"))
    with pytest.raises(ModelError, match="no-such-model"):
        atoms.get_potential_energy()


def test_names_are_loaded_with_their_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, *, dtype: str | None = None) -> MorsePotential:
        asked.append((name, dtype))
        return MorsePotential()

    monkeypatch.setattr("equibit.interfaces.ase.load_preferred", load)
    calculator = Calculator("ethanol-w4a8", dtype="float64")
    assert asked == []
    assert calculator.info.name == "morse"
    assert calculator.potential is calculator.potential
    assert asked == [("ethanol-w4a8", "float64")]


def test_import_and_construction_need_no_torch() -> None:
    code = (
        "import sys; from equibit.interfaces.ase import Calculator; Calculator('ethanol-w4a8'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
