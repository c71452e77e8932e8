"""Reading and writing structures, whatever the format."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile

from equibit.structures.errors import EquibitError, FileFormatError, UnitsError
from equibit.structures.formats.ase_formats import (
    iter_database,
    iter_trajectory,
    write_database,
    write_trajectory,
)
from equibit.structures.formats.extxyz import iter_extxyz, write_extxyz
from equibit.structures.formats.files import checked_file
from equibit.structures.formats.labels import LabelKeys
from equibit.structures.formats.npz import count_npz, iter_npz, write_npz
from equibit.structures.formats.qm9 import QM9_UNITS, is_qm9, iter_qm9, molecules_in
from equibit.structures.formats.refusals import Entry, structures_of
from equibit.structures.structure import Structure
from equibit.structures.units import INTERNAL_UNITS, Units

SUFFIXES = {
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".traj": "traj",
    ".db": "db",
    ".npz": "npz",
    ".tar.bz2": "qm9",
    ".tar": "qm9",
}
WRITERS = {
    "extxyz": write_extxyz,
    "traj": write_trajectory,
    "db": write_database,
    "npz": write_npz,
}


def iter_structures(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002
    units: Units | None = None,
    keys: LabelKeys | None = None,
) -> Iterator[Structure]:
    """The structures of a file, in Å, eV and eV/Å, read as they are asked for.

    Args:
        path: extended or plain XYZ (``.xyz``, ``.extxyz``), ASE trajectory (``.traj``) or database
            (``.db``), array file (``.npz``), QM9's original molecules (``.xyz``, a folder of them,
            or ``.tar.bz2``).
        format: ``extxyz``, ``traj``, ``db``, ``npz`` or ``qm9``; found from the file when None.
        units: of the file. An array file that does not state its units needs them; XYZ is in eV and
            Å unless you say otherwise; the other formats define their units.
        keys: names of the labels where they are not the usual ones (XYZ and npz).

    Raises:
        FileFormatError: missing, empty, truncated, foreign or damaged file, with frame and line.
        UnitsError: units that are missing or contradict the file.
    """
    return structures_of(iter_entries(path, format=format, units=units, keys=keys))


def iter_entries(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002
    units: Units | None = None,
    keys: LabelKeys | None = None,
) -> Iterator[Entry]:
    """As :func:`iter_structures`, with a ``Refused`` in the place of each structure that is damaged
    while those behind it can be read: frames of XYZ and ASE trajectories, rows of databases and
    array files, molecules of QM9.

    Raises:
        FileFormatError: damage that nothing behind it can be read past.
        UnitsError: as there.
    """
    kind = format or detect_format(path)
    if kind == "extxyz":
        return iter_extxyz(path, units=units, keys=keys)
    if kind == "npz":
        return iter_npz(path, units=units, keys=keys)
    if keys is not None:
        raise FileFormatError(f"{path}: label names can be chosen in XYZ and npz files only")
    if kind == "traj":
        _expect_units(path, units, INTERNAL_UNITS)
        return iter_trajectory(path)
    if kind == "db":
        _expect_units(path, units, INTERNAL_UNITS)
        return iter_database(path)
    if kind == "qm9":
        _expect_units(path, units, QM9_UNITS)
        return iter_qm9(path)
    raise _unknown(path, f"format {kind!r}", [*WRITERS, "qm9"])


def count_structures(path: str | os.PathLike[str]) -> int | None:
    """How many structures a file holds, where that can be had without reading them all.

    Damaged files may hold others than they say.

    Raises:
        FileFormatError: missing or empty file, or an unknown suffix.
    """
    kind = detect_format(path)
    with contextlib.suppress(OSError, ValueError, BadZipFile, EquibitError):
        if kind == "extxyz":
            return _count_frames(Path(path))
        if kind == "npz":
            return count_npz(path)
        if kind == "traj":
            from ase.io.trajectory import Trajectory

            with Trajectory(os.fspath(path)) as trajectory:
                return len(trajectory)
        if kind == "db":
            from ase.db import connect

            return int(connect(os.fspath(path)).count())
        if kind == "qm9" and Path(path).is_dir():
            return len(molecules_in(Path(path)))
    return None


def _count_frames(source: Path) -> int:
    frames = 0
    with source.open("rb") as file:
        while (header := file.readline()).strip():
            for _ in range(int(header) + 1):
                file.readline()
            frames += 1
    return frames


def read_structures(
    path: str | os.PathLike[str],
    *,
    index: int | slice | None = None,
    format: str | None = None,  # noqa: A002
    units: Units | None = None,
    keys: LabelKeys | None = None,
) -> list[Structure]:
    """The structures of a file as a list; see :func:`iter_structures`.

    Args:
        path, format, units, keys: as there.
        index: one frame (negative from the end) or a slice of them; all when None.

    Raises:
        FileFormatError: also when there is no frame ``index``.
        UnitsError: as there.
    """
    structures = iter_structures(path, format=format, units=units, keys=keys)
    if isinstance(index, slice):
        forward = all(part is None or part >= 0 for part in (index.start, index.stop, index.step))
        if forward:
            return list(islice(structures, index.start, index.stop, index.step))
        return list(structures)[index]
    if index is None:
        return list(structures)
    chosen = list(islice(structures, index, index + 1)) if index >= 0 else list(structures)
    try:
        return [chosen[0 if index >= 0 else index]]
    except IndexError:
        raise FileFormatError(f"{path} has no frame {index}") from None


def write_structures(
    path: str | os.PathLike[str],
    structures: Iterable[Structure],
    *,
    format: str | None = None,  # noqa: A002
) -> None:
    """Write structures with their labels, in Å, eV and eV/Å, whole or not at all.

    Args:
        path: its suffix says the format: ``.xyz``, ``.extxyz``, ``.traj``, ``.db``, ``.npz``.
        structures: any iterable; all formats but npz are written as it runs.
        format: ``extxyz``, ``traj``, ``db`` or ``npz``, whatever the suffix.

    Raises:
        FileFormatError: a format that equibit does not write.
        StructureError: there are no structures.
        WriteError: the file cannot be written; what was there before stays.
    """
    writer = WRITERS[checked_output_format(path, format)]
    writer(path, structures)


def checked_output_format(path: str | os.PathLike[str], format: str | None = None) -> str:  # noqa: A002
    """The format that a path will be written in, known before hours of work.

    Raises:
        FileFormatError: a format that equibit does not write.
    """
    kind = format or _format_of_suffix(Path(path))
    if kind is None or kind not in WRITERS:
        what = f"format {format!r}" if format else f"suffix {Path(path).suffix!r}"
        suffixes = [suffix for suffix, written in SUFFIXES.items() if written in WRITERS]
        raise _unknown(path, what, list(WRITERS) if format else suffixes)
    return kind


def detect_format(path: str | os.PathLike[str]) -> str:
    """The format of an existing file, from its suffix and first lines.

    Raises:
        FileFormatError: missing or empty file, or an unknown suffix.
    """
    source = Path(path)
    if source.is_dir():
        return "qm9"
    source = checked_file(source)
    kind = _format_of_suffix(source)
    if kind is None:
        raise _unknown(source, f"suffix {source.suffix!r}", list(SUFFIXES))
    return "qm9" if kind == "extxyz" and is_qm9(source) else kind


def _format_of_suffix(path: Path) -> str | None:
    name = path.name.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def _expect_units(path: str | os.PathLike[str], stated: Units | None, defined: Units) -> None:
    if stated is not None and str(stated) != str(defined):
        raise UnitsError(
            f"{path} is in {defined} by the definition of its format, but you passed {stated}; "
            "leave the units out"
        )


def _unknown(path: str | os.PathLike[str], what: str, known: list[str]) -> FileFormatError:
    return FileFormatError(f"{path}: unknown {what}; equibit knows {', '.join(known)}")
