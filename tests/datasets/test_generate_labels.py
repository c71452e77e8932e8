"""Labels: forces against energies, independence of order, retries and refusals."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from equibit.datasets.labels import (
    BOHR_ANGSTROM,
    HARTREE_EV,
    DftLabeller,
    LabelError,
    make_labeller,
)
from equibit.structures.errors import DatasetError

NUMBERS = np.array([8, 1, 1])
BENT = np.array([[0.01, 0.02, 0.13], [-0.03, 0.80, -0.46], [0.05, -0.71, -0.52]])


@pytest.fixture(scope="module", params=["gfn2-xtb", "pbe/def2-svp"])
def labeller(request):
    pytest.importorskip("tblite" if request.param == "gfn2-xtb" else "pyscf")
    return make_labeller(request.param, NUMBERS)


def test_forces_are_the_gradient_of_the_energy(labeller):
    """The gradient leaves out the response of the grid: a few meV/Å for a DFT."""
    direction = np.random.default_rng(3).standard_normal(BENT.shape)
    direction -= direction.mean(axis=0)
    direction /= np.linalg.norm(direction)
    step = 0.01
    slope = (
        labeller.label(BENT + step * direction).energy
        - labeller.label(BENT - step * direction).energy
    ) / (2 * step)
    forces = labeller.label(BENT).forces
    assert np.abs(forces).max() > 0.1
    assert -np.sum(forces * direction) == pytest.approx(slope, abs=5e-3)


def test_labels_do_not_depend_on_order(labeller):
    again = labeller.label(BENT)
    first = make_labeller(labeller.description["level"], NUMBERS).label(BENT)
    assert again.energy == pytest.approx(first.energy, abs=1e-9)
    np.testing.assert_allclose(again.forces, first.forces, atol=1e-8)


@pytest.mark.slow
def test_labels_follow_rotations(labeller):
    """Grids do not turn with the molecule; what is left is their noise."""
    angle = 0.7
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    here, turned = labeller.label(BENT), labeller.label(BENT @ turn.T)
    assert turned.energy == pytest.approx(here.energy, abs=1e-3)
    np.testing.assert_allclose(turned.forces, here.forces @ turn.T, atol=5e-3)


@pytest.mark.slow
def test_density_fitting_and_grid_stay_near_the_plain_calculation():
    pytest.importorskip("pyscf")
    from pyscf import dft, gto

    molecule = gto.M(
        atom=[(int(z), tuple(r)) for z, r in zip(NUMBERS, BENT, strict=True)],
        basis="def2-svp",
        verbose=0,
    )
    plain = dft.RKS(molecule, xc="pbe")
    plain.grids.level = 4
    energy = plain.kernel() * HARTREE_EV
    forces = -plain.nuc_grad_method().kernel() * HARTREE_EV / BOHR_ANGSTROM
    label = make_labeller("pbe/def2-svp", NUMBERS).label(BENT)
    assert label.energy == pytest.approx(energy, abs=0.02)
    np.testing.assert_allclose(label.forces, forces, atol=4e-3)


class _FakeMeanField:
    """An SCF and its own gradient; a finite number serves for both."""

    def __init__(self, converged: bool) -> None:
        self.converged = converged

    def kernel(self) -> float:
        return -1.0

    def nuc_grad_method(self) -> _FakeMeanField:
        return self


def test_retries_are_counted_and_then_given_up(monkeypatch):
    pytest.importorskip("pyscf")
    dft = make_labeller("pbe/def2-svp", NUMBERS)
    assert isinstance(dft, DftLabeller)
    outcomes = [False, True, True]
    monkeypatch.setattr(
        DftLabeller, "_strategies", lambda *_: (_FakeMeanField(o) for o in outcomes)
    )
    assert dft.label(BENT).attempts == 2
    outcomes[:] = [False, False, False]
    with pytest.raises(LabelError, match="does not converge"):
        dft.label(BENT)


@pytest.mark.slow
def test_every_strategy_finds_the_same_ground_state():
    pytest.importorskip("pyscf")
    dft = make_labeller("pbe/def2-svp", NUMBERS)
    energies = [mean_field.kernel() for mean_field in dft._strategies(BENT)]
    np.testing.assert_allclose(energies, energies[0], atol=1e-7)


def test_hybrids_fit_exchange_too():
    pytest.importorskip("pyscf")
    fitted = make_labeller("pbe0/def2-svp", NUMBERS).description["density_fitting"]
    assert fitted == "def2-universal-jkfit"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("am1", "unknown method"),
        ("pbe/", "unknown method"),
        ("nonsense/def2-svp", "no functional 'nonsense'"),
        ("pbe/def2-typo", "no basis 'def2-typo'"),
    ],
)
def test_unknown_levels_are_named(method, message):
    pytest.importorskip("pyscf")
    with pytest.raises(DatasetError, match=message):
        make_labeller(method, NUMBERS)


def test_open_shells_are_refused():
    with pytest.raises(DatasetError, match="9 electrons at charge 1"):
        make_labeller("gfn2-xtb", NUMBERS, charge=1)


@pytest.mark.parametrize(("method", "package"), [("gfn2-xtb", "tblite"), ("pbe/sto-3g", "pyscf")])
def test_a_missing_package_names_the_extra(monkeypatch, method, package):
    for name in [n for n in sys.modules if n.partition(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DatasetError, match=rf"(?i)needs {package}.*equibit\[data\]"):
        make_labeller(method, NUMBERS)
