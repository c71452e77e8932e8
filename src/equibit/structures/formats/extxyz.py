"""Extended XYZ and plain XYZ, read frame by frame and written without loss.

Format: https://github.com/libAtoms/extxyz. A frame is the number of atoms, a line of key=value
pairs with ``Properties`` describing the columns, and one line per atom. Numbers are written in the
shortest form that gives back the same float64.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

import numpy as np

from equibit.structures.ase_atoms import stress_matrix
from equibit.structures.errors import FileFormatError, StructureError, UnitsError
from equibit.structures.formats.files import checked_file
from equibit.structures.formats.labels import LabelKeys
from equibit.structures.formats.refusals import Entry, Refused
from equibit.structures.structure import BoolArray, FloatArray, IntArray, Structure
from equibit.structures.units import INTERNAL_UNITS, Units

_PAIR = re.compile(
    r"""(?P<key>"(?:[^"\\]|\\.)*"|[^\s="']+)
        (?:\s*=\s*(?P<value>"(?:[^"\\]|\\.)*"|'[^']*'|\{[^}]*\}|\[[^\]]*\](?:\s*,?\s*\])*|[^\s"'=]+))?
        (?=\s|$)""",
    re.VERBOSE,
)
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_PLAIN_PROPERTIES = "species:S:1:pos:R:3"
_VIRIALS = ("virial", "virials")
_RESERVED = {"Lattice", "Properties", "pbc", "energy", "stress"}
_TRUE, _FALSE = ("T", "True", "true", "TRUE"), ("F", "False", "false", "FALSE")


def iter_extxyz(
    path: str | os.PathLike[str],
    *,
    units: Units | None = None,
    keys: LabelKeys | None = None,
) -> Iterator[Entry]:
    """The frames of an XYZ file, one after the other, never more than one in memory.

    Extended XYZ is in eV and Å unless ``units`` says otherwise; a stress follows ASE's sign, and a
    ``virial`` W gives σ = −W/V where there is no stress, and a column ``momenta`` is in ASE's unit.
    Other key=value pairs go into ``info``; other columns are left out.

    A damaged frame is refused by itself as long as its lines can be counted, or the next line that
    holds but a number of atoms shows where it ends.

    Raises:
        FileFormatError: no line with a number of atoms where a frame should begin, with file, frame
            and line.
        UnitsError: ``units`` are stated for a file without energies, forces or positions to convert.
    """
    source = checked_file(path)
    reader = _FrameReader(str(source), units or INTERNAL_UNITS, keys or LabelKeys())
    try:
        with source.open(encoding="utf-8", errors="surrogateescape") as file:
            yield from reader.frames(file)
    except OSError as error:
        raise FileFormatError(f"{source} cannot be read: {error.strerror or error}") from error


class _FrameReader:
    """Reads frames and remembers where it is, so that errors can say so."""

    def __init__(self, name: str, units: Units, keys: LabelKeys) -> None:
        self.name, self.units = name, units
        self.energy_key = keys.energy or "energy"
        self.forces_key = keys.forces or "forces"
        self.stress_key = keys.stress or "stress"
        self.keys = keys
        self.frame = 0
        self.line = 0
        self._ahead = ""
        self._foreign = 0

    def frames(self, file: TextIO) -> Iterator[Entry]:
        while True:
            header = self._next_line(file)
            if not header.strip():
                self._expect_end(file, header)
                return
            n_atoms = self._number_of_atoms(header)
            comment, rows, last = self._take_lines(file, n_atoms)
            end = self.line
            entry: Entry
            try:
                entry = self._read_frame(n_atoms, comment, rows, last)
            except FileFormatError as error:
                entry = Refused(error)
            yield entry
            self.line = end
            self.frame += 1

    def _expect_end(self, file: TextIO, line: str) -> None:
        while line:
            if line.strip():
                raise self._error("there is text after a blank line; remove the blank line")
            line = self._next_line(file)
        if self.frame == 0:
            raise FileFormatError(f"{self.name} holds no frames, only blank lines")

    def _number_of_atoms(self, header: str) -> int:
        if self._foreign:
            raise FileFormatError(
                f"{self.name} is not a text file: line {self.line} cannot be read"
            )
        try:
            n_atoms = int(header)
        except ValueError:
            raise self._error(
                f"expected a number of atoms, found {_shown(header)}; is this an XYZ file?"
            ) from None
        if n_atoms < 0:
            raise self._error(f"a frame of {n_atoms} atoms; at least one is needed")
        return n_atoms

    def _take_lines(self, file: TextIO, n_atoms: int) -> tuple[str, list[list[str]], str]:
        """The pairs, the fields of each atom and the last line of a frame, however damaged."""
        comment = last = self._next_line(file)
        rows: list[list[str]] = []
        while len(rows) < n_atoms and (line := self._next_line(file)):
            fields = line.split()
            if len(fields) == 1 and fields[0].isdecimal():  # the next frame begins
                self._ahead = line
                self.line -= 1
                break
            rows.append(fields)
            last = line
        return comment, rows, last

    def _read_frame(
        self, n_atoms: int, comment: str, rows: list[list[str]], last: str
    ) -> Structure:
        if self._foreign:
            self.line, self._foreign = self._foreign, 0
            raise self._error("the line holds bytes that are no text")
        if n_atoms == 0:
            raise self._error("a frame of 0 atoms; at least one is needed")
        if not comment:
            raise self._error(
                "the file is truncated: it ends before the line after the number of atoms"
            )
        if not comment.endswith("\n"):
            raise self._error("the file is truncated: it ends within the line of key=value pairs")
        extended = "Properties=" in comment or "Lattice=" in comment
        pairs = self._parse_comment(comment) if extended or "=" in comment else {}
        columns = self._columns(str(pairs.pop("Properties", _PLAIN_PROPERTIES)))
        self._check_rows(n_atoms, rows, last, columns, extended)
        try:
            return self._structure(pairs, columns, rows)
        except (StructureError, ValueError) as error:
            if isinstance(error, FileFormatError | UnitsError):
                raise
            raise self._error(str(error)) from error

    def _check_rows(
        self,
        n_atoms: int,
        rows: list[list[str]],
        last: str,
        columns: Mapping[str, slice],
        extended: bool,
    ) -> None:
        width = max(column.stop for column in columns.values())
        end = self.line
        for atom, fields in enumerate(rows):
            self.line = end - len(rows) + 1 + atom
            whole = atom + 1 < len(rows) or last.endswith("\n")
            if not whole and (len(fields) < width or extended or _cut(rows)):
                raise self._error(
                    "the last line has no line end, so it may be truncated; if it is complete, "
                    "end it with a new line"
                )
            if len(fields) < width or (extended and len(fields) != width):
                raise self._error(
                    f"atom {atom} has {len(fields)} columns, expected {width}: "
                    f"{_shown(' '.join(fields))}"
                )
        if len(rows) < n_atoms:
            how = "the next frame begins" if self._ahead else "the file is truncated: it ends"
            raise self._error(f"{how} after {len(rows)} of {n_atoms} atoms")

    def _structure(
        self, pairs: dict[str, Any], columns: Mapping[str, slice], rows: list[list[str]]
    ) -> Structure:
        units = self.units
        numbers = self._numbers(columns, rows)
        positions = self._vectors("pos", columns, rows) * units.length_factor
        forces = None
        if self.forces_key in columns:
            forces = self._vectors(self.forces_key, columns, rows) * units.force_factor
        elif self.keys.forces:
            raise self._error(f"there is no column {self.forces_key!r} of forces")
        cell = None
        pbc = np.zeros(3, dtype=bool)
        if "Lattice" in pairs:
            cell = _numbers_of("Lattice", pairs.pop("Lattice"), 9).reshape(3, 3)
            cell = cell * units.length_factor
            pbc = np.ones(3, dtype=bool)
        if "pbc" in pairs:
            pbc = _flags(pairs.pop("pbc"))
        energy = None
        if self.energy_key in pairs:
            value = _numbers_of(self.energy_key, pairs.pop(self.energy_key), 1)
            energy = float(value[0]) * units.energy_factor
        elif self.keys.energy:
            raise self._error(f"there is no energy under {self.energy_key!r}")
        return Structure(
            numbers=numbers,
            positions=positions,
            cell=cell,
            pbc=pbc,
            energy=energy,
            forces=forces,
            stress=self._stress(pairs, cell),
            momenta=self._vectors("momenta", columns, rows) if "momenta" in columns else None,
            info=pairs,
        )

    def _stress(self, pairs: dict[str, Any], cell: FloatArray | None) -> FloatArray | None:
        if self.stress_key in pairs:
            values = np.asarray(pairs.pop(self.stress_key), dtype=np.float64)
            return stress_matrix(values) * self.units.stress_factor
        if self.keys.stress:
            raise self._error(f"there is no stress under {self.stress_key!r}")
        present = [key for key in _VIRIALS if key in pairs]
        if not present or cell is None:
            return None
        virial = stress_matrix(np.asarray(pairs.pop(present[0]), dtype=np.float64))
        volume = abs(float(np.linalg.det(cell)))
        if volume == 0:
            raise ValueError("there is a virial but the cell has no volume")
        return -virial * self.units.energy_factor / volume

    def _numbers(self, columns: Mapping[str, slice], rows: list[list[str]]) -> IntArray:
        from ase.data import atomic_numbers

        column = columns.get("species", columns.get("Z"))
        if column is None:
            raise self._error("Properties has neither species nor Z")
        numbers = []
        for atom, row in enumerate(rows):
            symbol = row[column.start]
            number = atomic_numbers.get(symbol.capitalize(), 0)
            if symbol.isdecimal():
                number = int(symbol)
            if number == 0:
                raise self._error(f"atom {atom} is {symbol!r}, which is no element")
            numbers.append(number)
        return np.array(numbers, dtype=np.int64)

    def _vectors(
        self, name: str, columns: Mapping[str, slice], rows: list[list[str]]
    ) -> FloatArray:
        column = columns[name]
        if column.stop - column.start != 3:
            raise self._error(f"{name} has {column.stop - column.start} columns; expected 3")
        try:
            return np.array([row[column] for row in rows], dtype=np.float64)
        except ValueError as error:
            raise self._error(f"{name}: {error}") from error

    def _columns(self, properties: str) -> dict[str, slice]:
        fields = properties.split(":")
        columns, start = {}, 0
        try:
            if len(fields) % 3:
                raise ValueError
            for name, count in zip(fields[::3], fields[2::3], strict=True):
                columns[name] = slice(start, start + int(count))
                if int(count) < 1:
                    raise ValueError
                start += int(count)
        except ValueError:
            raise self._error(f"Properties={properties} cannot be read") from None
        if "pos" not in columns:
            raise self._error(f"Properties={properties} has no pos")
        return columns

    def _parse_comment(self, line: str) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        text, position = line.strip(), 0
        while position < len(text):
            match = _PAIR.match(text, position)
            if match is None:
                raise self._error(f"cannot read the pairs from {_shown(text[position:])}")
            key, value = match["key"], match["value"]
            key = _unquoted(key) if key.startswith('"') else key
            if key in pairs:
                raise self._error(f"{key} is given twice")
            pairs[key] = True if value is None else _value(value, raw=key == "Properties")
            position = match.end()
            while position < len(text) and text[position].isspace():
                position += 1
        return pairs

    def _next_line(self, file: TextIO) -> str:
        line, self._ahead = self._ahead or file.readline(), ""
        self.line += bool(line)
        if not line.isascii() and not _is_text(line):
            self._foreign = self.line
        return line

    def _error(self, message: str) -> FileFormatError:
        return FileFormatError(f"{self.name}, frame {self.frame}, line {self.line}: {message}")


def format_frame(structure: Structure) -> str:
    """One frame of extended XYZ, labels and plain ``info`` values included.

    Info values are written where they are numbers, truth values, texts or lists of numbers.
    """
    from ase.data import chemical_symbols

    pairs = []
    if structure.cell is not None:
        pairs.append(f'Lattice="{_joined(structure.cell)}"')
    properties = _PLAIN_PROPERTIES
    table = structure.positions
    for name in ("forces", "momenta"):
        vectors = getattr(structure, name)
        if vectors is not None:
            properties += f":{name}:R:3"
            table = np.hstack([table, vectors])
    pairs.append(f"Properties={properties}")
    if structure.energy is not None:
        pairs.append(f"energy={structure.energy!r}")
    if structure.stress is not None:
        pairs.append(f'stress="{_joined(structure.stress)}"')
    flags = " ".join("T" if periodic else "F" for periodic in structure.pbc)
    pairs.append(f'pbc="{flags}"')
    pairs += _info_pairs(structure.info)
    lines = [str(len(structure)), " ".join(pairs)]
    for number, row in zip(structure.numbers.tolist(), table.tolist(), strict=True):
        lines.append(f"{chemical_symbols[number]} {' '.join(map(repr, row))}")
    return "\n".join(lines) + "\n"


def write_extxyz(path: str | os.PathLike[str], structures: Iterable[Structure]) -> None:
    """Write extended XYZ, frame by frame and atomically.

    Raises:
        StructureError: there are no structures.
        WriteError: the file cannot be written; what was there before stays.
    """
    from equibit.storage import atomic_text

    with atomic_text(path) as file:
        count = 0
        for count, structure in enumerate(structures, start=1):  # noqa: B007
            file.write(format_frame(structure))
        if count == 0:
            raise StructureError(f"there are no structures to write to {path}")


def _value(text: str, *, raw: bool) -> Any:
    """A truth value, number, list of either, or the text itself."""
    inner = text
    if text[0] == '"':
        inner = _unquoted(text)
    elif text[0] in "'{[":
        inner = text[1:-1]
    if raw:
        return inner
    words = re.split(r"[\s,\[\]]+", inner.strip(" ,[]"))
    for convert in (_flag, int, float):
        try:
            values = [convert(word) for word in words]
        except (ValueError, OverflowError):
            continue
        return values[0] if len(values) == 1 else values
    return inner


def _flag(word: str) -> bool:
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(word)


def _flags(value: Any) -> BoolArray:
    flags = value if isinstance(value, list) else [value] * 3
    if len(flags) != 3 or not all(flag in (0, 1) for flag in flags):
        raise ValueError(f"pbc is {value!r}; expected three times T or F")
    return np.array(flags, dtype=bool)


def _numbers_of(key: str, value: Any, count: int) -> FloatArray:
    try:
        numbers = np.asarray(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise ValueError(f"{key} is {value!r}; expected {count} numbers") from None
    if numbers.size != count or isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}; expected {count} numbers")
    return numbers


def _info_pairs(info: Mapping[str, Any]) -> list[str]:
    pairs = []
    for key, value in info.items():
        if not _PLAIN_KEY.fullmatch(key) or key in _RESERVED:
            continue
        if isinstance(value, bool | np.bool_):
            pairs.append(f"{key}={'T' if value else 'F'}")
        elif isinstance(value, int | np.integer):
            pairs.append(f"{key}={int(value)}")
        elif isinstance(value, float | np.floating):
            pairs.append(f"{key}={float(value)!r}")
        elif isinstance(value, str):
            pairs.append(f"{key}={_quoted(value)}")
        elif isinstance(value, list | tuple | np.ndarray):
            array = np.asarray(value)
            if array.ndim == 1 and array.size and array.dtype.kind in "iuf":
                pairs.append(f'{key}="{" ".join(map(repr, array.tolist()))}"')
    return pairs


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    for character, escape in (("\n", "\\n"), ("\r", "\\r")):
        escaped = escaped.replace(character, escape)
    return f'"{escaped}"'


def _unquoted(text: str) -> str:
    plain = {"n": "\n", "r": "\r"}
    return re.sub(r"\\(.)", lambda match: plain.get(match[1], match[1]), text[1:-1])


def _joined(matrix: FloatArray) -> str:
    return " ".join(map(repr, matrix.reshape(-1).tolist()))


def _cut(rows: list[list[str]]) -> bool:
    """Whether the last number has fewer decimals than those above it, as a cut one would."""
    decimals = [len(row[-1].partition(".")[2]) for row in rows]
    return len(rows) > 1 and decimals[-1] < min(decimals[:-1])


def _is_text(line: str) -> bool:
    """Whether all of its bytes were UTF-8; others were escaped as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in line)


def _shown(text: str) -> str:
    short = text.strip()
    return repr(short if len(short) <= 60 else short[:57] + "...")
