"""Array files: every family of keys, their units, and every refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equibit.structures import FileFormatError, Structure, StructureError, Units, UnitsError
from equibit.structures.formats import LabelKeys, read_structures
from equibit.structures.formats.npz import read_npz, write_npz

KCAL = 0.043364104241800934
RNG = np.random.default_rng(0)
R = RNG.normal(size=(4, 3, 3))
E = RNG.normal(size=4)
F = RNG.normal(size=(4, 3, 3))
Z = np.array([8, 1, 1], dtype=np.uint8)


def save(tmp_path: Path, **arrays: Any) -> Path:
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    "keys", [("nuclear_charges", "coords", "energies", "forces"), ("z", "R", "E", "F")]
)
def test_rmd17_and_md17_keys(tmp_path: Path, keys: tuple[str, ...]) -> None:
    path = save(tmp_path, **dict(zip(keys, (Z, R, E, F), strict=True)))
    read = read_structures(path, units=Units("kcal/mol", "Å"))
    assert len(read) == 4
    assert read[2].numbers.tolist() == [8, 1, 1]
    np.testing.assert_array_equal(read[2].positions, R[2])
    assert read[2].energy == pytest.approx(E[2] * KCAL, rel=1e-15)
    np.testing.assert_allclose(read[2].forces, F[2] * KCAL, rtol=1e-15)


def test_units_are_never_guessed(tmp_path: Path) -> None:
    path = save(tmp_path, z=Z, R=R, E=E, F=F)
    with pytest.raises(UnitsError, match=r"set\.npz does not state its units.*--units kcal/mol,Å"):
        read_structures(path)


@pytest.mark.parametrize(
    "stated",
    [
        {"e_unit": "kcal/mol", "r_unit": "Ang"},
        {"e_unit": np.array(b"kcal/mol"), "r_unit": np.array([b"Ang"])},
        {"energy_unit": "kcal/mol", "force_unit": "kcal/mol/A"},
        {"energy_unit": "kcal/mol", "length_unit": "A"},
        {"meta": '{"units": {"E": "kcal/mol", "R": "angstrom", "F": "kcal/mol/angstrom"}}'},
    ],
)
def test_units_that_the_file_states(tmp_path: Path, stated: dict[str, Any]) -> None:
    path = save(tmp_path, z=Z, R=R, E=E, F=F, **stated)
    assert read_structures(path)[0].energy == pytest.approx(E[0] * KCAL)
    assert read_structures(path, units=Units("kcal/mol", "Å"))[0].energy is not None
    with pytest.raises(UnitsError, match="but you passed eV"):
        read_structures(path, units=Units("eV", "Å"))


@pytest.mark.parametrize(
    "stated",
    [
        {"e_unit": "Ry", "r_unit": "Ang"},
        {"energy_unit": "eV", "force_unit": "newton"},
        {"meta": '{"units": {"E": "eV"}}'},
    ],
)
def test_unknown_units_that_the_file_states(tmp_path: Path, stated: dict[str, Any]) -> None:
    with pytest.raises(UnitsError, match=r"set\.npz states units that equibit cannot read"):
        read_structures(save(tmp_path, z=Z, R=R, **stated))


def test_mixed_units_of_energy_and_force(tmp_path: Path) -> None:
    path = save(
        tmp_path, z=Z, R=R, E=E, F=F, energy_unit="Hartree", force_unit="eV/A", length_unit="Bohr"
    )
    (read, *_) = read_structures(path)
    np.testing.assert_allclose(read.forces, F[0])
    np.testing.assert_allclose(read.positions, R[0] * 0.529177210903)


def test_sgdml_lattice_has_vectors_as_columns(tmp_path: Path) -> None:
    lattice = np.array([[4.0, 1.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 6.0]])
    path = save(tmp_path, z=Z, R=R, lattice=lattice, e_unit="eV", r_unit="Ang")
    (read, *_) = read_structures(path)
    np.testing.assert_array_equal(read.cell, lattice.T)
    assert read.pbc.all()


def test_energies_of_shape_m_1_and_own_numbers_per_structure(tmp_path: Path) -> None:
    path = save(tmp_path, z=np.tile(Z, (4, 1)), R=R, E=E[:, None])
    assert [s.energy for s in read_structures(path, units=Units())] == E.tolist()


def test_several_molecules(tmp_path: Path) -> None:
    path = save(tmp_path, n_atoms=[1, 2], z=[1, 8, 1], pos=R[0], energies=E[:2], forces=F[0])
    one, two = read_structures(path, units=Units())
    assert (one.numbers.tolist(), two.numbers.tolist()) == ([1], [8, 1])
    np.testing.assert_array_equal(two.forces, F[0, 1:])


def test_labels_under_other_names(tmp_path: Path) -> None:
    path = save(tmp_path, z=Z, R=R, E=E, dft_e=E + 1)
    read = read_structures(path, units=Units(), keys=LabelKeys(energy="dft_e"))
    assert read[0].energy == E[0] + 1
    with pytest.raises(FileFormatError, match="has no 'ccsd' for the energies; it has E, R"):
        read_structures(path, units=Units(), keys=LabelKeys(energy="ccsd"))


def test_splits_and_meta_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    structures = [Structure(Z, positions, energy=0.5) for positions in R]
    write_npz(path, structures, splits={"train": [2, 0], "test": [1]}, meta={"level": "PBE"})
    content = read_npz(path)
    assert {k: v.tolist() for k, v in content.splits.items()} == {"train": [2, 0], "test": [1]}
    assert content.meta["level"] == "PBE"


def test_one_molecule_is_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    write_npz(path, [Structure(Z, positions) for positions in R])
    with np.load(path) as file:
        assert file["z"].shape == (3,)
        assert file["R"].shape == (4, 3, 3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "has no numbers: expected a key z or nuclear_charges"),
        ({"z": Z}, "has no positions: expected a key R or coords"),
        ({"z": Z, "R": R, "coords": R}, "both R and coords"),
        ({"z": Z, "R": R[0]}, r"positions have shape \(3, 3\)"),
        ({"z": Z[:2], "R": R}, r"numbers have shape \(2,\)"),
        ({"z": Z, "R": R[:0]}, "positions have shape"),
        ({"z": Z + 0.5, "R": R}, "not whole numbers"),
        ({"z": Z * 0, "R": R}, "structure 0: atom 0 has atomic number 0"),
        ({"z": Z, "R": R, "E": E[:3]}, r"energies have shape \(3,\)"),
        ({"z": Z, "R": R, "F": F[:, :2]}, "forces have shape"),
        ({"z": Z, "R": R, "E": E.astype(str)}, "array of numbers is needed"),
        ({"z": Z, "R": np.where(R[1, 2, 0] == R, np.nan, R)}, "structure 1: atom 2 is at"),
        (
            {"z": Z, "R": R, "E": np.array([0, 1, np.inf, 0])},
            "structure 2: its label of energy is inf",
        ),
        (
            {"z": Z, "R": R, "F": np.where(F[3, 0, 0] == F, np.nan, F)},
            "structure 3: its label of forces is",
        ),
        ({"n_atoms": [1, 1], "z": Z, "R": R[0]}, "n_atoms add up to 2"),
        ({"n_atoms": [0, 3], "z": Z, "R": R[0]}, "at least one atom"),
        ({"z": Z, "R": R, "cell": np.eye(3)}, "a cell but no pbc"),
        ({"z": Z, "R": R, "split_train": [0, 9]}, "split_train points beyond"),
        ({"z": Z, "R": R, "split_train": [0.5]}, "whole numbers"),
        ({"z": Z, "R": R, "meta": "{"}, "meta is not JSON"),
        ({"z": Z, "R": R, "meta": '{"format":"equibit-structures","version":9}'}, "version 9"),
    ],
)
def test_what_is_no_set_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = save(tmp_path, **arrays)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_structures(path, units=Units())
    assert str(path) in str(caught.value)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, z=Z, R=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FileFormatError, match="allow_pickle"):
        read_structures(path, units=Units())


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    with path.open("wb") as file:
        np.save(file, R)
    with pytest.raises(FileFormatError, match="one array"):
        read_structures(path)


def test_info_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match="info of a structure cannot be written"):
        write_npz(tmp_path / "own.npz", [Structure([1], [[0, 0, 0]], info={"x": object()})])
    assert list(tmp_path.iterdir()) == []
