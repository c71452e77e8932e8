"""ASE's trajectories (.traj) and databases (.db), in eV and Å by definition."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equibit.structures.ase_atoms import from_ase, to_ase
from equibit.structures.errors import FileFormatError, StructureError
from equibit.structures.formats.files import checked_file
from equibit.structures.formats.refusals import Entry, Refused
from equibit.structures.structure import Structure

if TYPE_CHECKING:
    from ase.db.row import AtomsRow

_TRAJECTORY_MAGIC = b"- of UlmASE-Traj"
_DATABASE_MAGIC = b"SQLite format 3\0"


def iter_trajectory(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """The frames of an ASE trajectory, one after the other; damaged ones are refused by themselves.

    Raises:
        FileFormatError: no trajectory.
    """
    source = checked_file(path)
    _check_magic(source, _TRAJECTORY_MAGIC, "an ASE trajectory (.traj)")
    from ase.io.trajectory import TrajectoryReader

    # ASE's parser lets through whatever damaged bytes lead to, here and below.
    try:
        reader = TrajectoryReader(source)
        frames = len(reader)
    except Exception as error:
        raise _damaged(source, "its beginning", error) from error
    with reader:
        for frame in range(frames):
            entry: Entry
            try:
                entry = from_ase(reader[frame])
            except Exception as error:
                entry = Refused(_damaged(source, f"frame {frame}", error))
            yield entry


def write_trajectory(path: str | os.PathLike[str], structures: Iterable[Structure]) -> None:
    """Write an ASE trajectory atomically.

    Raises:
        StructureError: there are no structures.
        WriteError: the file cannot be written; what was there before stays.
    """
    from ase.io.trajectory import TrajectoryWriter

    from equibit.storage import atomic_path

    with atomic_path(path) as temporary:
        count = 0
        with TrajectoryWriter(temporary, mode="w") as writer:
            for count, structure in enumerate(structures, start=1):  # noqa: B007
                writer.write(to_ase(structure))
        if count == 0:
            raise StructureError(f"there are no structures to write to {path}")


def iter_database(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """The rows of an ASE database (SQLite) in the order of their ids.

    Key-value pairs go into ``info``. A row that SQLite hands out and ASE cannot make atoms of is
    refused by itself.

    Raises:
        FileFormatError: no such database, or one that SQLite cannot read on.
    """
    source = checked_file(path)
    _check_magic(source, _DATABASE_MAGIC, "an ASE database (.db, SQLite)")
    import sqlite3

    from ase.db import connect

    place = "its beginning"
    try:
        with contextlib.closing(sqlite3.connect(source)) as file:
            ids = [row_id for (row_id,) in file.execute("SELECT id FROM systems ORDER BY id")]
        with connect(source, type="db", use_lock_file=False) as database:
            for row_id in ids:
                place = f"row {row_id}"
                entry: Entry
                try:
                    entry = _of_row(database.get(id=row_id))
                except sqlite3.Error:
                    raise
                except Exception as error:
                    entry = Refused(_damaged(source, place, error))
                yield entry
    except GeneratorExit:
        raise
    # SQLite, JSON and ASE each raise their own on damaged bytes
    except Exception as error:
        raise _damaged(source, place, error) from error


def _of_row(row: AtomsRow) -> Structure:
    info = {**row.key_value_pairs, **dict(row.data.get("info", {}))}
    return replace(from_ase(row.toatoms()), info=info)


def write_database(path: str | os.PathLike[str], structures: Iterable[Structure]) -> None:
    """Write an ASE database (SQLite) atomically; ``info`` goes into each row's data.

    Raises:
        StructureError: there are no structures.
        WriteError: the file cannot be written; what was there before stays.
    """
    from ase.db import connect

    from equibit.storage import atomic_path

    with atomic_path(path) as temporary:
        count = 0
        with connect(temporary, type="db", use_lock_file=False) as database:
            for count, structure in enumerate(structures, start=1):  # noqa: B007
                atoms = to_ase(structure)
                info: dict[str, Any] = {"info": atoms.info} if atoms.info else {}
                database.write(atoms, data=info)
        if count == 0:
            raise StructureError(f"there are no structures to write to {path}")


def _check_magic(source: Path, magic: bytes, description: str) -> None:
    with source.open("rb") as file:
        start = file.read(len(magic))
    if start != magic:
        raise FileFormatError(f"{source} is not {description}, or its beginning is damaged")


def _damaged(source: Path, place: str, error: Exception) -> FileFormatError:
    if isinstance(error, FileFormatError):
        return error
    if isinstance(error, StructureError):
        return FileFormatError(f"{source}, {place}: {error}")
    return FileFormatError(
        f"{source}, {place}: truncated or damaged ({type(error).__name__}: {error}); copy it again"
    )
