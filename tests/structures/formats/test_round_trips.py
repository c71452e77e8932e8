"""Every format gives back what was written, and damaged files are refused in one way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.structures.strategies import assert_same, structures

from equibit.structures import FileFormatError, Structure, StructureError, UnitsError
from equibit.structures.formats import (
    LabelKeys,
    detect_format,
    iter_structures,
    read_structures,
    write_structures,
)
from equibit.structures.units import Units

SUFFIXES = ("xyz", "extxyz", "npz", "traj", "db")
per_file = settings(
    max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def kept_by(suffix: str, *, infos: bool = True) -> st.SearchStrategy[Structure]:
    """Structures without what the format has no place for."""
    return structures(infos=infos, momenta=suffix != "npz")


def read_or_refused(path: Path) -> list[Structure]:
    """What the file holds, or nothing if it is refused by name; other errors are for pytest."""
    try:
        return read_structures(path)
    except (FileFormatError, UnitsError) as error:
        message = str(error)
    assert str(path) in message
    return []


@pytest.mark.parametrize("suffix", SUFFIXES)
@per_file
@given(st.data())
def test_round_trip(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    written = data.draw(st.lists(kept_by(suffix), min_size=1, max_size=4))
    path = tmp_path / f"set.{suffix}"
    write_structures(path, written)
    read = read_structures(path)
    assert len(read) == len(written)
    for one, other in zip(read, written, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("suffix", SUFFIXES)
@per_file
@given(st.data())
def test_truncation_is_noticed_or_leaves_whole_frames(
    tmp_path: Path, suffix: str, data: st.DataObject
) -> None:
    written = data.draw(st.lists(kept_by(suffix, infos=False), min_size=1, max_size=3))
    path = tmp_path / f"set.{suffix}"
    write_structures(path, written)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    read = read_or_refused(path)
    assert len(read) <= len(written)
    for one, other in zip(read, written, strict=False):
        assert_same(one, other)


@pytest.mark.parametrize("suffix", SUFFIXES)
@per_file
@given(st.data())
def test_damage_raises_nothing_foreign(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"set.{suffix}"
    write_structures(path, [data.draw(structures(infos=False))])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    read_or_refused(path)


@pytest.mark.parametrize("suffix", [*SUFFIXES, "tar.bz2"])
@per_file
@given(st.binary(max_size=200))
def test_foreign_files_are_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"set.{suffix}"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=str(path)):
        read_structures(path)


@pytest.mark.parametrize("suffix", [*SUFFIXES, "tar.bz2"])
def test_missing_and_empty_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"set.{suffix}"
    with pytest.raises(FileFormatError, match="no file"):
        read_structures(path)
    path.touch()
    with pytest.raises(FileFormatError, match="is empty"):
        read_structures(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"set.{suffix}"
    old = [Structure([1], [[0, 0, 0]], energy=-13.6)]
    write_structures(path, old)

    def broken():
        yield old[0]
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError):
        write_structures(path, broken())
    with pytest.raises(StructureError, match="no structures"):
        write_structures(path, [])
    assert_same(read_structures(path)[0], old[0])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_readers_stream(tmp_path: Path) -> None:
    """The first frame comes before the damaged second one is looked at."""
    path = tmp_path / "set.xyz"
    write_structures(path, [Structure([1], [[0, 0, 0]])])
    path.write_text(path.read_text() + "nonsense\n")
    frames = iter_structures(path)
    assert len(next(frames)) == 1
    with pytest.raises(FileFormatError, match="frame 1, line 4"):
        next(frames)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, [0]),
        (-1, [4]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, -2), [4, 2, 0]),
        (slice(-2, None), [3, 4]),
        (None, [0, 1, 2, 3, 4]),
    ],
)
def test_index(tmp_path: Path, index: int | slice | None, expected: list[int]) -> None:
    path = tmp_path / "set.xyz"
    write_structures(path, [Structure([1], [[k, 0, 0]]) for k in range(5)])
    read = read_structures(path, index=index)
    assert [s.positions[0, 0] for s in read] == expected


@pytest.mark.parametrize("index", [5, -6])
def test_index_beyond_the_end(tmp_path: Path, index: int) -> None:
    path = tmp_path / "set.xyz"
    write_structures(path, [Structure([1], [[k, 0, 0]]) for k in range(5)])
    with pytest.raises(FileFormatError, match=f"no frame {index}"):
        read_structures(path, index=index)


def test_unknown_suffixes_and_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.cif"
    path.write_text("data_")
    with pytest.raises(FileFormatError, match=r"unknown suffix '.cif'.*\.extxyz"):
        read_structures(path)
    with pytest.raises(FileFormatError, match="unknown suffix"):
        write_structures(path, [])
    with pytest.raises(FileFormatError, match="unknown format 'cif'"):
        read_structures(path, format="cif")
    with pytest.raises(FileFormatError, match="unknown format 'qm9'"):
        write_structures(tmp_path / "set.xyz", [], format="qm9")


def test_a_stated_format_overrides_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "set.dat"
    write_structures(path, [Structure([1], [[0, 0, 0]])], format="npz")
    assert len(read_structures(path, format="npz")) == 1


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    path = tmp_path / "SET.XYZ"
    write_structures(path, [Structure([1], [[0, 0, 0]])])
    assert detect_format(path) == "extxyz"


@pytest.mark.parametrize("suffix", ["traj", "db"])
def test_units_contradicting_the_definition_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"set.{suffix}"
    write_structures(path, [Structure([1], [[0, 0, 0]])])
    assert read_structures(path, units=Units("eV", "Å"))
    with pytest.raises(UnitsError, match="by the definition of its format"):
        read_structures(path, units=Units("kcal/mol", "Å"))
    with pytest.raises(FileFormatError, match="label names"):
        read_structures(path, keys=LabelKeys(energy="e"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_energies_keep_float64(tmp_path: Path, suffix: str) -> None:
    energy = -154.90123456789012 * 27.211386245988
    path = tmp_path / f"set.{suffix}"
    write_structures(path, [Structure([1], [[0, 0, 0]], energy=energy)])
    assert np.float64(read_structures(path)[0].energy).tobytes() == np.float64(energy).tobytes()
