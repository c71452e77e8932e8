"""Velocities without net motion at the very temperature, and bonds worth watching."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule

from equibit.dynamics import find_bonds, initial_velocities, temperature_of
from equibit.dynamics.start import degrees_of_freedom, kinetic_energy, masses_of
from equibit.interfaces.ase import structure_from_atoms
from equibit.structures import Structure


def named(name: str) -> Structure:
    return structure_from_atoms(molecule(name))


@pytest.mark.parametrize(("name", "freedom"), [("CH3CH2OH", 21), ("CO2", 4), ("N2", 1), ("H", 0)])
def test_velocities_have_the_temperature_and_no_net_motion(name: str, freedom: int) -> None:
    structure = named(name)
    assert degrees_of_freedom(structure, "nve") == freedom
    velocities = initial_velocities(structure, 400.0, seed=3)
    masses = masses_of(structure)
    if not freedom:
        assert not velocities.any()
        return
    kinetic = kinetic_energy(velocities, masses)
    assert temperature_of(kinetic, freedom) == pytest.approx(400.0)
    momenta = masses[:, None] * velocities
    arms = structure.positions - structure.positions.mean(axis=0)
    assert np.abs(momenta.sum(axis=0)).max() < 1e-14
    assert np.abs(np.cross(arms, momenta).sum(axis=0)).max() < 1e-13


def test_velocities_follow_their_seed_and_masses() -> None:
    structure = named("CH3CH2OH")
    one = initial_velocities(structure, 300.0, seed=1)
    assert (one == initial_velocities(structure, 300.0, seed=1)).all()
    assert not np.isclose(one, initial_velocities(structure, 300.0, seed=2)).any()
    many = np.array([initial_velocities(structure, 300.0, seed=k) for k in range(400)])
    energies = masses_of(structure) * (many**2).sum(axis=2).mean(axis=0)
    heavy = structure.numbers > 1
    # Equipartition, less the share of the net motion, which is larger for heavy atoms.
    assert 0.4 < energies[heavy].mean() / energies[~heavy].mean() < 1.0


def test_a_periodic_system_may_turn_but_not_move() -> None:
    crystal = structure_from_atoms(bulk("Cu", cubic=True))
    velocities = initial_velocities(crystal, 300.0, seed=0)
    masses = masses_of(crystal)
    assert degrees_of_freedom(crystal, "nve") == 9
    assert temperature_of(kinetic_energy(velocities, masses), 9) == pytest.approx(300.0)
    assert np.abs((masses[:, None] * velocities).sum(axis=0)).max() < 1e-13


def test_bonds_of_a_molecule_are_found_and_named() -> None:
    bonds = find_bonds(named("CH3CH2OH"))
    assert bonds.labels == ("C–C", "C–H", "O–C", "O–H")
    assert np.bincount(bonds.kinds).tolist() == [1, 5, 1, 1]
    assert (bonds.longest > 1.1).all()
    assert (bonds.longest < 3.0).all()


def test_metals_are_not_watched_and_bonds_across_a_boundary_know_their_image() -> None:
    assert len(find_bonds(structure_from_atoms(bulk("Cu", cubic=True))).pairs) == 0
    split = Structure([1, 1], [[0.1, 0, 0], [9.6, 0, 0]], cell=10 * np.eye(3), pbc=[True] * 3)
    bonds = find_bonds(split)
    assert bonds.pairs.tolist() == [[0, 1]]
    assert bonds.shifts.tolist() == [[-10.0, 0, 0]]
    whole = Structure([1, 1], [[0.1, 0, 0], [0.8, 0, 0]], cell=10 * np.eye(3), pbc=[True] * 3)
    assert find_bonds(whole).shifts.tolist() == [[0.0, 0, 0]]
