"""The ASE calculator, driven by ASE's own dynamics, optimisers and filters."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, build, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from tests.evaluation.toy import MorsePotential, copper, molecule

from equibit import engine
from equibit.interfaces.ase import Calculator, structure_from_atoms
from equibit.models.shipped import resolve_model
from equibit.structures import FileFormatError, ModelError, Prediction, Structure, StructureError


def ethanol() -> Atoms:
    return build.molecule("CH3CH2OH")


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


def test_stress_of_a_relaxedis_refused_and_the_rest_works() -> None:
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
    with pytest.raises(ModelError, match="dtype is 'float16'; expected float32 or float64"):
        _ = Calculator("ethanol-w4a8", dtype="float16").info
    with pytest.raises(TypeError, match="takes no keyword dtpye"):
        Calculator("ethanol-w4a8", dtpye="float64")


@pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")
def test_a_calculator_in_use_is_copied_and_sent_to_other_processes() -> None:
    atoms = Atoms("CHOH", positions=[[0, 0, 0], [1.1, 0, 0], [-0.8, 1.1, 0], [-1.7, 0.9, 0.1]])
    atoms.calc = Calculator("ethanol-w4a8")
    expected = atoms.get_potential_energy()
    twin = copy.deepcopy(atoms)
    assert twin.calc is not atoms.calc
    twin.rattle(0.1, seed=1)
    assert twin.get_potential_energy() != expected
    assert atoms.get_potential_energy() == expected
    sent = pickle.loads(pickle.dumps(atoms.calc))
    assert sent.get_potential_energy(atoms.copy()) == expected
    portable = Calculator(engine.load("ethanol-w4a8", kernels="portable", threads=2)).potential
    again = pickle.loads(pickle.dumps(portable))
    assert (again.kernels, again.threads, again.info) == ("portable", 2, portable.info)
    assert repr(atoms.calc) == "Calculator('ethanol-w4a8')"
    assert repr(Calculator(portable)) == "Calculator('ethanol-w4a8')"


@pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")
def test_vibrations_and_processes_of_ase(tmp_path: Path) -> None:
    """What users do in loops: one calculator for many displacements, in pools of processes too."""
    relaxed = ethanol()
    relaxed.calc = Calculator("ethanol-fp32")
    BFGS(relaxed, logfile=None).run(fmax=0.005, steps=200)
    vibrations = Vibrations(relaxed, name=str(tmp_path / "vibrations"))
    vibrations.run()
    assert 3500 < vibrations.get_frequencies().real.max() < 4000  # 1/cm, of O–H
    displaced = [ethanol() for _ in range(4)]
    for seed, atoms in enumerate(displaced):
        atoms.rattle(0.05, seed=seed)
        atoms.calc = relaxed.calc
    expected = [atoms.get_potential_energy() for atoms in displaced]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(Atoms.get_potential_energy, displaced) == expected


def test_a_missing_model_is_reported_at_once_and_a_damaged_one_on_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="no model no-such-model"):
        Calculator("no-such-model")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    Path("damaged.safetensors").write_bytes(b"model")
    calculator = Calculator("damaged.safetensors")
    monkeypatch.chdir("here")
    atoms = Atoms("H2", positions=[[0, 0, 0], [0.7, 0, 0]], calculator=calculator)
    with pytest.raises(FileFormatError, match=r"damaged\.safetensors"):
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
    assert asked == [(resolve_model("ethanol-w4a8"), "float64")]


def test_import_and_construction_need_no_torch() -> None:
    code = (
        "import sys; from equibit.interfaces.ase import Calculator; Calculator('ethanol-w4a8'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
