"""Conversion factors, spellings and refusals."""

from __future__ import annotations

import pytest

from equibit.structures import Units, UnitsError, parse_units
from equibit.structures.units import units_of_force


@pytest.mark.parametrize(
    ("text", "energy", "force"),
    [
        ("eV,Å", 1.0, 1.0),
        ("meV,Å", 1e-3, 1e-3),
        ("kcal/mol,Å", 0.04336410424, 0.04336410424),
        ("kJ/mol,nm", 0.01036426966, 0.001036426966),
        ("Hartree,Bohr", 27.2113862460, 51.4220674763),
        ("Hartree,Å,Hartree/Bohr", 27.2113862460, 51.4220674763),
        ("eV,Å,meV/A", 1.0, 1e-3),
    ],
)
def test_factors(text: str, energy: float, force: float) -> None:
    units = parse_units(text)
    assert units.energy_factor == pytest.approx(energy, rel=1e-9)
    assert units.force_factor == pytest.approx(force, rel=1e-9)


def test_factors_agree_with_ase() -> None:
    from ase import units as ase_units

    assert Units("kcal/mol").energy_factor == pytest.approx(
        ase_units.kcal / ase_units.mol, rel=1e-7
    )
    assert Units("Hartree").energy_factor == pytest.approx(ase_units.Hartree, rel=1e-7)
    assert Units("eV", "Bohr").length_factor == pytest.approx(ase_units.Bohr, rel=1e-7)


@pytest.mark.parametrize("spelling", ["Å", "\u212b", "A", "ang", "Angstrom", "angstroms"])
def test_spellings_of_angstrom(spelling: str) -> None:
    assert Units("eV", spelling) == Units("eV", "Å")


def test_stress_is_energy_per_volume() -> None:
    assert parse_units("Hartree,Bohr").stress_factor == pytest.approx(183.6315353, rel=1e-7)


def test_units_of_force_keep_the_slash_of_the_energy() -> None:
    assert units_of_force("kcal/mol/A") == Units("kcal/mol", "Å")


@pytest.mark.parametrize(
    "text",
    ["", "eV", "eV,", "eV,Å,eV/Å,K", "MeV,Å", "Mev,Å", "cal,Å", "eV,pm", "eV,Å,eV", "eV,Å,K/Å"],
)
def test_unknown_units_are_refused(text: str) -> None:
    with pytest.raises(UnitsError):
        parse_units(text)


def test_refusal_lists_what_is_known() -> None:
    with pytest.raises(UnitsError, match=r"'Ry'.*eV, meV, kcal/mol, kJ/mol, Hartree"):
        Units("Ry", "Å")
