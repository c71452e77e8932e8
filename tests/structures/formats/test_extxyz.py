"""Extended XYZ: ASE as the independent reader and writer, units, signs, and every refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from equibit.structures import FileFormatError, Structure, Units
from equibit.structures.ase_atoms import to_ase
from equibit.structures.formats import LabelKeys, read_structures, write_structures

CELL = np.array([[4.0, 0.1, 0.0], [0.2, 5.0, 0.3], [0.0, 0.4, 6.0]])
STRESS = np.array([[1.0, 0.4, 0.5], [0.4, 2.0, 0.6], [0.5, 0.6, 3.0]])
CRYSTAL = Structure(
    numbers=[6, 8],
    positions=[[0.1, 0.2, 0.3], [1.1, 1.2, 1.3]],
    cell=CELL,
    pbc=[True, True, False],
    energy=-1234.56789012345,
    forces=[[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]],
    stress=STRESS,
    info={"name": "CO", "step": 3},
)


def text(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "file.xyz"
    path.write_text(content)
    return path


def test_ase_reads_what_we_write(tmp_path: Path) -> None:
    from ase.io import read

    path = tmp_path / "file.extxyz"
    write_structures(path, [CRYSTAL, CRYSTAL])
    atoms = read(path, index=1)
    assert atoms.get_potential_energy() == CRYSTAL.energy
    np.testing.assert_array_equal(atoms.positions, CRYSTAL.positions)
    np.testing.assert_array_equal(atoms.get_forces(), CRYSTAL.forces)
    np.testing.assert_array_equal(atoms.get_stress(voigt=False), STRESS)
    np.testing.assert_array_equal(atoms.cell.array, CELL)
    assert atoms.pbc.tolist() == [True, True, False]
    assert atoms.info == {"name": "CO", "step": 3}


def test_we_read_what_ase_writes(tmp_path: Path) -> None:
    from ase.io import write

    path = tmp_path / "file.extxyz"
    write(path, [to_ase(CRYSTAL)] * 2, format="extxyz")
    (_, read) = read_structures(path)
    assert read.energy == CRYSTAL.energy
    np.testing.assert_allclose(read.positions, CRYSTAL.positions, atol=1e-8)
    np.testing.assert_allclose(read.forces, CRYSTAL.forces, atol=1e-8)
    np.testing.assert_allclose(read.stress, STRESS, atol=1e-12)
    np.testing.assert_allclose(read.cell, CELL, atol=1e-12)
    assert read.pbc.tolist() == [True, True, False]
    assert dict(read.info) == {"name": "CO", "step": 3}


def test_plain_xyz(tmp_path: Path) -> None:
    path = text(tmp_path, "2\nwater, or half of it\nO 0 0 0\nh 0 0 0.96 extra\n\n")
    (read,) = read_structures(path)
    assert read.numbers.tolist() == [8, 1]
    assert read.energy is None
    assert not read.periodic


@pytest.mark.parametrize(
    ("last", "complete"), [("H 0 0 0.96", True), ("H 0 0 0.9", False), ("H 0 0", False)]
)
def test_plain_xyz_without_the_last_line_end(tmp_path: Path, last: str, complete: bool) -> None:
    path = text(tmp_path, f"3\n\nO 0 0 0.00\nH 0 0.96 0.00\n{last}")
    if complete:
        assert len(read_structures(path)[0]) == 3
    else:
        with pytest.raises(FileFormatError, match="truncated"):
            read_structures(path)


def test_stated_units(tmp_path: Path) -> None:
    path = text(
        tmp_path,
        '1\nLattice="1 0 0 0 1 0 0 0 1" Properties=species:S:1:pos:R:3:forces:R:3 energy=1 '
        'stress="1 0 0 0 1 0 0 0 1"\nH 1 0 0 1 0 0\n',
    )
    (read,) = read_structures(path, units=Units("Hartree", "Bohr"))
    assert read.energy == pytest.approx(27.211386, rel=1e-6)
    assert read.positions[0, 0] == pytest.approx(0.529177, rel=1e-6)
    assert read.cell[0, 0] == pytest.approx(0.529177, rel=1e-6)
    assert read.forces[0, 0] == pytest.approx(51.42207, rel=1e-6)
    assert read.stress[0, 0] == pytest.approx(183.6315, rel=1e-6)


@pytest.mark.parametrize("key", ["virial", "virials"])
def test_virial_is_minus_volume_times_stress(tmp_path: Path, key: str) -> None:
    path = text(
        tmp_path,
        f'1\nLattice="2 0 0 0 2 0 0 0 2" Properties=species:S:1:pos:R:3 {key}="8 0 0 0 8 0 0 0 16"'
        "\nH 0 0 0\n",
    )
    (read,) = read_structures(path)
    np.testing.assert_allclose(read.stress, -np.diag([1.0, 1.0, 2.0]))
    assert read.pbc.all(), "a lattice without pbc is periodic"


def test_six_stresses_are_voigt(tmp_path: Path) -> None:
    path = text(
        tmp_path,
        '1\nLattice="2 0 0 0 2 0 0 0 2" Properties=species:S:1:pos:R:3 stress="1 2 3 4 5 6"\n'
        "H 0 0 0\n",
    )
    expected = [[1, 6, 5], [6, 2, 4], [5, 4, 3]]
    np.testing.assert_array_equal(read_structures(path)[0].stress, expected)


def test_labels_under_other_names(tmp_path: Path) -> None:
    path = text(
        tmp_path,
        "1\nProperties=species:S:1:pos:R:3:dft_forces:R:3 dft_energy=-2.5 energy=9\nH 0 0 0 1 2 3\n",
    )
    keys = LabelKeys(energy="dft_energy", forces="dft_forces")
    (read,) = read_structures(path, keys=keys)
    assert read.energy == -2.5
    assert read.forces.tolist() == [[1, 2, 3]]
    (usual,) = read_structures(path)
    assert (usual.energy, usual.forces) == (9.0, None)
    for wrong in (LabelKeys(energy="e"), LabelKeys(forces="f"), LabelKeys(stress="s")):
        with pytest.raises(FileFormatError, match="there is no"):
            read_structures(path, keys=wrong)


def test_pairs_of_every_kind(tmp_path: Path) -> None:
    path = text(
        tmp_path,
        '1\nProperties=species:S:1:pos:R:3 a=1 b=1.5e-3 c=T d="two words" e="1 2 3" f={4 5} '
        'g=[6, 7] h=\'x y\' flag "quoted key"=1 i="say \\"hi\\""\nH 0 0 0\n',
    )
    assert dict(read_structures(path)[0].info) == {
        "a": 1,
        "b": 1.5e-3,
        "c": True,
        "d": "two words",
        "e": [1, 2, 3],
        "f": [4, 5],
        "g": [6, 7],
        "h": "x y",
        "flag": True,
        "quoted key": 1,
        "i": 'say "hi"',
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("two\n\nH 0 0 0\n", r"frame 0, line 1: expected a number of atoms, found 'two'"),
        ("0\n\n", "a frame of 0 atoms"),
        ("-1\n\n", "a frame of -1 atoms"),
        ("\n\n", "no frames"),
        ("1\n", "truncated: it ends before"),
        ("1\nenergy=1", "truncated: it ends within"),
        ("2\n\nH 0 0 0\n", "truncated: it ends after 1 of 2 atoms"),
        ("1\n\nH 0 0\n", "atom 0 has 3 columns, expected 4"),
        ("1\nProperties=species:S:1:pos:R:3\nH 0 0 0 0\n", "5 columns, expected 4"),
        ("1\n\nXx 0 0 0\n", "'Xx', which is no element"),
        ("1\n\n500 0 0 0\n", "atomic number 500"),
        ("1\n\nH 0 0 zero\n", "pos: could not convert"),
        ("1\n\nH 0 0 nan\n", "positions of atom 0 are"),
        ("1\n\nH 0 0 inf\n", "all must be finite"),
        ("1\nenergy=nan\nH 0 0 0\n", "energy label is nan"),
        ("1\nenergy=low\nH 0 0 0\n", "energy is 'low'; expected 1 numbers"),
        ("1\nenergy=1 energy=2\nH 0 0 0\n", "energy is given twice"),
        ('1\na="unclosed\nH 0 0 0\n', "cannot read the pairs"),
        ("1\nProperties=species:S:1\nH\n", "has no pos"),
        ("1\nProperties=pos:R:3\n0 0 0\n", "neither species nor Z"),
        ("1\nProperties=species:S:1:pos:R:2\nH 0 0\n", "pos has 2 columns"),
        ("1\nProperties=species:S:1:pos:R\nH 0 0 0\n", "cannot be read"),
        ('1\nLattice="1 2 3" Properties=species:S:1:pos:R:3\nH 0 0 0\n', "expected 9 numbers"),
        ('1\nLattice="1 0 0 0 1 0 0 0 0" x=1\nH 0 0 0\n', "lattice vector is zero"),
        ("1\npbc=T\nH 0 0 0\n", "lattice vector is zero"),
        ("1\n\nH 0 0 0\n\n1\n\nH 0 0 0\n", "text after a blank line"),
        ("1\n\nH 0 0 0\n1\n\nH 0 x 0\n", "frame 1, line 6"),
    ],
)
def test_what_is_not_a_frame_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message) as caught:
        read_structures(text(tmp_path, content))
    assert str(tmp_path / "file.xyz") in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "file.xyz"
    path.write_bytes(b"1\n\nH 0 0 0\n\xff\xfe")
    with pytest.raises(FileFormatError, match="not a text file"):
        read_structures(path)
