"""QM9 in its original form: one dsgdb9nsd_*.xyz per molecule, or the archive of all of them.

Format: R. Ramakrishnan et al., Sci. Data 1, 140022 (2014), Tables 2 and 3. The second line is
``gdb <index>`` and 15 properties; numbers may be written ``1.5*^-6`` for 1.5e-6.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from equibit.structures.errors import FileFormatError, StructureError
from equibit.structures.formats.files import checked_file
from equibit.structures.formats.refusals import Entry, Refused
from equibit.structures.structure import Structure
from equibit.structures.units import Units

QM9_UNITS = Units("Hartree", "Å")

_ZPVE, _U0 = 11, 12  # positions after "gdb <index>": A B C μ α ε_HOMO ε_LUMO gap ⟨R²⟩ zpve U0 …
_N_PROPERTIES = 17


def iter_qm9(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """Molecules of a dsgdb9nsd file, of a folder of them, or of the tar archive, in order.

    What is not of this form is refused by itself, with file and line.

    The energy is the electronic one, U0 − ZPVE, in eV; ``info`` holds gdb_index, u0_ha, zpve_ha and
    the relaxed SMILES.

    Raises:
        FileFormatError: no such file, no molecules, or an archive that is damaged.
    """
    source = Path(path)
    if source.is_dir():
        files = molecules_in(source)
        if not files:
            raise FileFormatError(f"{source} holds no dsgdb9nsd_*.xyz")
        for file in files:
            yield _molecule(partial(_checked_bytes, file), str(file))
        return
    source = checked_file(source)
    if source.name.endswith(".xyz"):
        yield _molecule(source.read_bytes, str(source))
        return
    yield from _iter_archive(source)


def parse_qm9(text: str, name: str) -> Structure:
    """One molecule.

    Args:
        text: content of a dsgdb9nsd file.
        name: of the file, for errors.

    Raises:
        FileFormatError: the text is not of this form or is truncated.
    """
    from ase.data import atomic_numbers

    lines = text.splitlines()
    try:
        n_atoms = int(lines[0])
        properties = lines[1].split()
        if properties[0] != "gdb" or len(properties) != _N_PROPERTIES:
            raise ValueError
    except (ValueError, IndexError):
        raise FileFormatError(
            f"{name}: lines 1 and 2 are not a number of atoms and `gdb` with 16 numbers"
        ) from None
    # atoms, then frequencies, SMILES and InChI; the last line end tells a complete file
    if len(lines) < n_atoms + 5 or not text.endswith("\n"):
        raise FileFormatError(
            f"{name} is truncated: {len(lines)} lines for {n_atoms} atoms, expected {n_atoms + 5}"
        )
    numbers, positions = [], []
    line = 2
    try:
        energy = _number(properties[_U0]) - _number(properties[_ZPVE])
        for row in lines[2 : 2 + n_atoms]:
            line += 1
            symbol, x, y, z, _charge = row.split()
            numbers.append(atomic_numbers[symbol])
            positions.append([_number(x), _number(y), _number(z)])
        return Structure(
            numbers=np.array(numbers),
            positions=np.array(positions),
            energy=energy * QM9_UNITS.energy_factor,
            info={
                "gdb_index": int(properties[1]),
                "u0_ha": _number(properties[_U0]),
                "zpve_ha": _number(properties[_ZPVE]),
                "smiles": lines[n_atoms + 3].split()[-1],
            },
        )
    except (ValueError, IndexError, KeyError, StructureError) as error:
        raise FileFormatError(f"{name}, line {line}: {error}") from error


def molecules_in(folder: Path) -> list[Path]:
    """The molecules' files, in order."""
    return sorted(folder.glob("dsgdb9nsd_*.xyz"))


def is_qm9(source: Path) -> bool:
    """Whether a text file begins like a QM9 molecule."""
    with source.open("rb") as file:
        return file.read(200).partition(b"\n")[2].startswith(b"gdb ")


def _checked_bytes(file: Path) -> bytes:
    return checked_file(file).read_bytes()


def _molecule(read: Callable[[], bytes], name: str) -> Entry:
    try:
        return parse_qm9(_text(read(), name), name)
    except FileFormatError as error:
        return Refused(error)


def _iter_archive(source: Path) -> Iterator[Entry]:
    member = ""
    try:
        with tarfile.open(source, mode="r|*") as archive:
            for item in archive:
                member = item.name
                content = archive.extractfile(item) if item.isfile() else None
                if content is not None and member.endswith(".xyz"):
                    yield _molecule(content.read, f"{source}:{member}")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        where = f" after {member}" if member else ""
        raise FileFormatError(
            f"{source} is not a tar archive, or is truncated or damaged{where} ({error}); "
            "download it again"
        ) from error
    if not member:
        raise FileFormatError(f"{source} holds no dsgdb9nsd_*.xyz")


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{name} is not a text file") from error


def _number(text: str) -> float:
    return float(text.replace("*^", "e"))
