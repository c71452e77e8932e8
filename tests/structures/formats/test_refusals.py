"""Damaged structures are refused by themselves where what follows them can be read."""

from __future__ import annotations

import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.structures.formats.test_qm9 import molecule

from equibit.structures import FileFormatError, Structure
from equibit.structures.formats import (
    Refused,
    count_structures,
    iter_entries,
    read_structures,
    write_structures,
)

STRUCTURES = [
    Structure([8, 1, 1], np.eye(3) + k, energy=-float(k), forces=np.eye(3)) for k in range(5)
]


def frame(k: int) -> str:
    """As it stands in a file."""
    rows = "".join(f"{s} {float(k)} {float(k)} {x}\n" for s, x in (("O", 0.5), ("H", 1.25)))
    return f"2\nProperties=species:S:1:pos:R:3 energy=-{k}\n{rows}"


def whole(path: Path) -> list[int]:
    """Indices of the entries that are structures."""
    return [k for k, e in enumerate(iter_entries(path)) if isinstance(e, Structure)]


def reasons(path: Path) -> dict[int, str]:
    found = {k: e for k, e in enumerate(iter_entries(path)) if isinstance(e, Refused)}
    return {k: str(refused.error) for k, refused in found.items()}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("H 2.0 2.0", "H 2.0 ****", "frame 2, line 12: pos: could not convert"),
        ("H 2.0 2.0", "H 2.0 nan", "frame 2, line 12: positions of atom 1"),
        ("H 2.0 2.0 1.25\n", "H 2.0 2.0\n", "frame 2, line 12: atom 1 has 3 columns, expected 4"),
        ("H 2.0 2.0 1.25\n", "", "frame 2, line 11: the next frame begins after 1 of 2 atoms"),
        ("O 2.0 2.0 0.5\nH 2.0", "H 2.0", "frame 2, line 11: the next frame begins"),
        ("H 2.0", "Hx 2.0", "frame 2, line 12: atom 1 is 'Hx'"),
        ("energy=-2", "energy=-", "frame 2, line 12: energy is '-'"),
        ("Properties=species:S:1:pos:R:3 energy=-2", "Properties=p", "frame 2, line 12: .* cannot"),
        ("H 2.0", "\udcff\udcfe 2.0", "frame 2, line 12: the line holds bytes that are no text"),
        ("2\nProperties=species:S:1:pos:R:3 energy=-2", "900000000\nx", "line 12: .* 900000000 atoms"),
    ],
)  # fmt: skip
def test_a_damaged_frame(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "set.xyz"
    content = "".join(frame(k) for k in range(5))
    assert old in content
    path.write_bytes(content.replace(old, new, 1).encode(errors="surrogateescape"))
    assert whole(path) == [0, 1, 3, 4]
    assert [e.energy for e in iter_entries(path) if isinstance(e, Structure)] == [0, -1, -3, -4]
    with pytest.raises(FileFormatError, match=message):
        raise FileFormatError(reasons(path)[2])
    with pytest.raises(FileFormatError, match=message):
        read_structures(path)


def test_a_frame_cut_off_by_the_end_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "set.xyz"
    path.write_text("".join(frame(k) for k in range(3))[:-15])
    assert whole(path) == [0, 1]
    assert "truncated" in reasons(path)[2]


def test_no_frame_can_be_found_behind_lines_too_many(tmp_path: Path) -> None:
    path = tmp_path / "set.xyz"
    path.write_text(frame(0) + "O 1 2 3\n" + frame(1))
    entries = iter_entries(path)
    assert isinstance(next(entries), Structure)
    with pytest.raises(FileFormatError, match="frame 1, line 5: expected a number of atoms"):
        next(entries)
    assert count_structures(path) is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("R", np.nan, "set.npz, structure 2: atom 0 is at"),
        ("F", np.inf, "set.npz, structure 2: its label of forces is"),
        ("E", np.nan, "set.npz, structure 2: its label of energy is nan"),
        ("z", 0, "set.npz, structure 2: atom 0 has atomic number 0"),
        ("cell", np.nan, "set.npz, structure 2: cell holds NaN"),
    ],
)
@pytest.mark.parametrize("sizes", ["equal", "mixed"])
def test_a_damaged_row_of_an_array_file(
    tmp_path: Path, key: str, value: float, message: str, sizes: str
) -> None:
    path = tmp_path / "set.npz"
    cell = 9 * np.eye(3)
    written = [
        Structure(s.numbers, s.positions, cell, [True] * 3, s.energy, s.forces) for s in STRUCTURES
    ]
    if sizes == "mixed":
        written[0] = Structure([1], [[0, 0, 0]], cell, [True] * 3, 1.0, [[0, 0, 0]])
    write_structures(path, written)
    arrays = dict(np.load(path))
    if key == "z" and sizes == "equal":
        arrays["z"] = np.tile(arrays["z"], (5, 1))
    row = 2
    if sizes == "mixed" and key in "zRF":
        row = 4  # the first atom of structure 2
    arrays[key] = arrays[key].copy()
    arrays[key][row].reshape(-1)[:1] = value
    if arrays[key][row].ndim == 0:
        arrays[key][row] = value
    np.savez(path, **arrays)
    assert whole(path) == [0, 1, 3, 4]
    assert message in reasons(path)[2]
    assert count_structures(path) == 5
    with pytest.raises(FileFormatError, match=message):
        read_structures(path)


def test_a_truncated_array_file_stays_an_error(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    write_structures(path, STRUCTURES)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FileFormatError, match="truncated or damaged"):
        iter_entries(path)
    assert count_structures(path) is None


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE systems SET positions = x'00' WHERE id = 3",
        "UPDATE systems SET data = 'no JSON' WHERE id = 3",
        "UPDATE systems SET numbers = NULL WHERE id = 3",
    ],
)
def test_a_damaged_row_of_a_database(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "set.db"
    write_structures(path, STRUCTURES)
    with sqlite3.connect(path) as file:
        assert file.execute(damage).rowcount == 1
    file.close()
    assert whole(path) == [0, 1, 3, 4]
    assert f"{path}, row 3: " in reasons(path)[2]
    with pytest.raises(FileFormatError, match="row 3"):
        read_structures(path)


def test_a_database_that_sqlite_cannot_read_on_stays_an_error(tmp_path: Path) -> None:
    path = tmp_path / "set.db"
    write_structures(path, STRUCTURES * 200)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="damaged"):
        list(iter_entries(path))


def test_a_damaged_frame_of_an_ase_trajectory(tmp_path: Path) -> None:
    path = tmp_path / "set.traj"
    write_structures(path, STRUCTURES)
    content = path.read_bytes()
    third = (np.eye(3) + 2).tobytes()
    assert content.count(third) == 1
    path.write_bytes(content.replace(third, np.full((3, 3), np.nan).tobytes()))
    assert whole(path) == [0, 1, 3, 4]
    assert "set.traj, frame 2: positions of atom 0" in reasons(path)[2]


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_a_damaged_molecule_of_qm9(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "qm9"
    folder.mkdir()
    for k in range(1, 6):
        text = molecule(k) if k != 3 else molecule(k)[:-30]
        (folder / f"dsgdb9nsd_{k:06d}.xyz").write_text(text)
    path = folder
    if form == "archive":
        path = tmp_path / "qm9.tar"
        with tarfile.open(path, "w") as archive:
            for file in sorted(folder.iterdir()):
                archive.add(file, file.name)
    assert whole(path) == [0, 1, 3, 4]
    assert "dsgdb9nsd_000003.xyz is truncated" in reasons(path)[2]
    assert count_structures(path) == (5 if form == "folder" else None)


@pytest.mark.parametrize("suffix", ["xyz", "npz", "traj", "db"])
@pytest.mark.parametrize("change", [lambda s: s, lambda s: [Structure([1], [[0, 0, 0]]), *s]])
def test_counts(
    tmp_path: Path, suffix: str, change: Callable[[list[Structure]], list[Structure]]
) -> None:
    path = tmp_path / f"set.{suffix}"
    write_structures(path, change(STRUCTURES))
    assert count_structures(path) == len(change(STRUCTURES))
