"""ASE's trajectories (.traj) and databases (.db), in eV and Å by definition."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from equibit.structures.ase_atoms import from_ase, to_ase
from equibit.structures.errors import FileFormatError, StructureError
from equibit.structures.formats.files import checked_file
from equibit.structures.structure import Structure

_TRAJECTORY_MAGIC = b"- of UlmASE-Traj"
_DATABASE_MAGIC = b"SQLite format 3\0"


def iter_trajectory(path: str | os.PathLike[str]) -> Iterator[Structure]:
    """The frames of an ASE trajectory, one after the other.

    Raises:
        FileFormatError: no trajectory, or a damaged frame (named).
    """
    source = checked_file(path)
    _check_magic(source, _TRAJECTORY_MAGIC, "an ASE trajectory (.traj)")
    from ase.io.trajectory import TrajectoryReader

    frame = 0
    try:
        with TrajectoryReader(source) as reader:
            for frame in range(len(reader)):
                yield from_ase(reader[frame])
    except GeneratorExit:
        raise
    # ASE's parser lets through whatever damaged bytes lead to
    except Exception as error:
        raise _damaged(source, f"frame {frame}", error) from error


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


def iter_database(path: str | os.PathLike[str]) -> Iterator[Structure]:
    """The rows of an ASE database (SQLite) in the order of their ids.

    Key-value pairs go into ``info``.

    Raises:
        FileFormatError: no such database, or a damaged row (named).
    """
    source = checked_file(path)
    _check_magic(source, _DATABASE_MAGIC, "an ASE database (.db, SQLite)")
    from ase.db import connect

    row_id = 0
    try:
        for row in connect(source, type="db", use_lock_file=False).select(sort="id"):
            row_id = row.id
            structure = from_ase(row.toatoms())
            info = {**row.key_value_pairs, **dict(row.data.get("info", {}))}
            yield Structure(**{**vars(structure), "info": info})
    except GeneratorExit:
        raise
    # SQLite, JSON and ASE each raise their own on damaged bytes
    except Exception as error:
        raise _damaged(source, f"row {row_id}", error) from error


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


def _damaged(source: Path, place: str, error: Exception) -> Exception:
    if isinstance(error, FileFormatError):
        return error
    if isinstance(error, StructureError):
        return FileFormatError(f"{source}, {place}: {error}")
    return FileFormatError(
        f"{source}, {place}: truncated or damaged ({type(error).__name__}: {error}); copy it again"
    )
