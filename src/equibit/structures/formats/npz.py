"""Array files (.npz): the keys of rMD17, of MD17 and sGDML, and equibit's own.

equibit's own layout, all in eV and Å:

    meta    JSON: format "equibit-structures", version, units {"E", "R", "F"}, level, and whatever
            else describes the set
    z       atomic numbers. Shape: [n] (one molecule) or [atoms] (several, with n_atoms)
    R       positions. Shape: [m, n, 3] or [atoms, 3]
    E, F    energies and forces, float64. Shape: [m], and as R
    stress, cell, pbc    Shape: [m, 3, 3], [m, 3, 3], [m, 3]
    n_atoms atoms of each structure, only when they are not all the same molecule. Shape: [m]
    known_E, known_F, known_stress    false where a label is absent. Shape: [m]
    split_<name>    indices of a split
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic

from equibit.structures.errors import FileFormatError, StructureError, UnitsError
from equibit.structures.formats.files import checked_file
from equibit.structures.formats.labels import LabelKeys
from equibit.structures.formats.refusals import Entry, Refused
from equibit.structures.packed import PackedStructures, impossible_atoms
from equibit.structures.structure import FloatArray, IntArray, Structure
from equibit.structures.units import INTERNAL_UNITS, Units, units_of_force

FORMAT_NAME = "equibit-structures"
FORMAT_VERSION = 1

Arrays = Mapping[str, npt.NDArray[Any]]

# What → the names that files give it. The first is the one that equibit writes.
KEYS = {
    "numbers": ("z", "nuclear_charges", "Z", "numbers", "atomic_numbers"),
    "positions": ("R", "coords", "pos", "positions"),
    "energies": ("E", "energies", "energy"),
    "forces": ("F", "forces"),
    "stress": ("stress",),
    "cell": ("cell",),
    "pbc": ("pbc",),
}
_SPLIT_PREFIX = "split_"


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """What an array file holds, in Å and eV.

    Attributes:
        structures: all of them.
        units: the units that the file was in.
        splits: index arrays by name, where the file has them.
        meta: what the file says about itself.
    """

    structures: PackedStructures
    units: Units
    splits: Mapping[str, IntArray] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


def read_npz(
    path: str | os.PathLike[str], *, units: Units | None = None, keys: LabelKeys | None = None
) -> ArrayFile:
    """Read an array file whose keys are among ``KEYS``.

    Args:
        path: the file.
        units: its units; may be left out when the file states them.
        keys: names of the labels where they are others.

    Raises:
        FileFormatError: no such file, not an array file, damaged, keys or shapes that cannot be
            structures, NaN or infinity in a label.
        UnitsError: the file does not state its units and neither do you, or the two differ.
    """
    source = checked_file(path)
    arrays = load_arrays(source)
    return structures_from_arrays(source, arrays, units=units, keys=keys)


def iter_npz(
    path: str | os.PathLike[str], *, units: Units | None = None, keys: LabelKeys | None = None
) -> Iterator[Entry]:
    """The structures of an array file, one after the other; damaged ones are refused by themselves.

    The file is read at once, and raises what :func:`read_npz` raises of the file as a whole.
    """
    source = checked_file(path)
    damaged: dict[int, str] = {}
    content = structures_from_arrays(
        source, load_arrays(source), units=units, keys=keys, damaged=damaged
    )

    def entries() -> Iterator[Entry]:
        for index in range(len(content.structures)):
            entry: Entry
            try:
                if index in damaged:
                    raise StructureError(damaged[index])
                entry = content.structures[index]
            except StructureError as error:
                entry = Refused(FileFormatError(f"{source}, structure {index}: {error}"))
            yield entry

    return entries()


def count_npz(path: str | os.PathLike[str]) -> int | None:
    """How many structures an array file has, by the shapes that it begins its arrays with.

    None where that is no number of structures; whether the file is whole is not looked at.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: it is no array file.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for key in ("n_atoms", *KEYS["positions"]):
            if f"{key}.npy" in names:
                with archive.open(f"{key}.npy") as file:
                    header = (
                        read_array_header_1_0
                        if read_magic(file) == (1, 0)
                        else read_array_header_2_0
                    )
                    shape = header(file)[0]
                return int(shape[0]) if shape else None
    return None


def load_arrays(source: Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an .npz file; nothing in it is executed.

    Raises:
        FileFormatError: not an .npz file, or damaged.
    """
    try:
        loaded = np.load(source, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise FileFormatError(f"{source} holds one array (.npy); an .npz is needed")
        with loaded as file:
            return {name: file[name] for name in file.files}
    except FileFormatError:
        raise
    # zip, zlib, struct and the array parser each raise their own on damaged bytes
    except Exception as error:
        raise FileFormatError(
            f"{source} is not an .npz file, or it is truncated or damaged ({error}); "
            "copy or download it again"
        ) from error


def structures_from_arrays(
    source: Path,
    arrays: Arrays,
    *,
    units: Units | None = None,
    keys: LabelKeys | None = None,
    damaged: dict[int, str] | None = None,
) -> ArrayFile:
    """Structures of the arrays of one file.

    Args:
        source: the file, for errors.
        arrays: what it holds.
        units, keys: see :func:`read_npz`.
        damaged: filled with the index of each structure that cannot be and the reason; what the file
            then holds in its place is of no use. None: the first of them is an error.

    Raises:
        FileFormatError, UnitsError: see :func:`read_npz`.
    """
    meta = _meta(source, arrays)
    units = agreed_units(source, units, _stated_units(source, arrays, meta))
    chosen = keys or LabelKeys()
    named = {"energies": chosen.energy, "forces": chosen.forces, "stress": chosen.stress}
    found = {what: _find(source, arrays, what, named.get(what)) for what in KEYS}
    numbers, positions = found["numbers"], found["positions"]
    if numbers is None or positions is None:
        missing = "numbers" if numbers is None else "positions"
        raise FileFormatError(
            f"{source} has no {missing}: expected a key {' or '.join(KEYS[missing])}, found "
            f"{', '.join(sorted(arrays)) or 'nothing'}"
        )
    try:
        offsets, flat_numbers = _layout(arrays, numbers, positions)
        n_structures = offsets.size - 1
        n_atoms = int(offsets[-1])
        cells, pbc = _cells(arrays, found, n_structures)
        flat_positions = _floats(positions).reshape(n_atoms, 3) * units.length_factor
        if damaged is not None:
            for structure, reason in impossible_atoms(offsets, flat_numbers, flat_positions):
                damaged.setdefault(structure, reason)
            lost = np.isin(np.repeat(np.arange(n_structures), np.diff(offsets)), list(damaged))
            flat_numbers = np.where(lost, 1, flat_numbers)
            flat_positions[lost] = 0.0
        structures = PackedStructures(
            offsets=offsets,
            numbers=flat_numbers,
            positions=flat_positions,
            energies=_label(found, "energies", (n_structures,), units.energy_factor),
            forces=_label(found, "forces", (n_atoms, 3), units.force_factor),
            stresses=_label(found, "stress", (n_structures, 3, 3), units.stress_factor),
            cells=None if cells is None else cells * units.length_factor,
            pbc=pbc,
            infos=_infos(arrays),
        )
        _apply_masks(arrays, structures)
        splits = _splits(arrays, n_structures)
    except (StructureError, ValueError, TypeError, OverflowError) as error:
        raise FileFormatError(f"{source}: {error}") from error
    for structure, reason in _bad_labels(structures, arrays):
        if damaged is None:
            raise FileFormatError(
                f"{source}, structure {structure}: {reason}; repair the file or leave this "
                "structure out"
            )
        damaged.setdefault(structure, reason)
    return ArrayFile(structures, units, splits, meta)


def npz_arrays(
    structures: Iterable[Structure],
    *,
    splits: Mapping[str, npt.ArrayLike] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of equibit's own layout.

    Raises:
        StructureError: no structures, or an ``info`` that JSON cannot hold.
        ValueError: ``meta`` is not JSON.
    """
    packed = PackedStructures.from_structures(list(structures))
    sizes = packed.sizes
    header = {
        **(meta or {}),
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "units": {"R": INTERNAL_UNITS.length, "E": INTERNAL_UNITS.energy, "F": "eV/Å"},
    }
    arrays: dict[str, npt.NDArray[Any]] = {
        "meta": np.array(json.dumps(header, sort_keys=True, ensure_ascii=False))
    }
    same = (sizes == sizes[0]).all()
    numbers = packed.numbers.reshape(len(packed), -1) if same else packed.numbers
    if same and (numbers == numbers[0]).all():
        arrays["z"] = numbers[0].astype(np.uint8)
        shape: tuple[int, ...] = (len(packed), int(sizes[0]), 3)
    else:
        arrays["z"] = packed.numbers.astype(np.uint8)
        arrays["n_atoms"] = sizes
        shape = (int(packed.offsets[-1]), 3)
    arrays["R"] = packed.positions.reshape(shape)
    if packed.energies is not None:
        arrays["E"] = packed.energies
        _add_mask(arrays, "E", ~np.isnan(packed.energies))
    if packed.forces is not None:
        arrays["F"] = packed.forces.reshape(shape)
        first_atoms = packed.forces[packed.offsets[:-1], 0]
        _add_mask(arrays, "F", ~np.isnan(first_atoms))
    if packed.stresses is not None:
        arrays["stress"] = packed.stresses
        _add_mask(arrays, "stress", ~np.isnan(packed.stresses[:, 0, 0]))
    if packed.cells is not None and packed.pbc is not None:
        arrays["cell"], arrays["pbc"] = packed.cells, packed.pbc
    if packed.infos is not None:
        try:
            arrays["info"] = np.array(json.dumps(packed.infos, default=_json_value))
        except (TypeError, ValueError) as error:
            raise StructureError(f"the info of a structure cannot be written: {error}") from error
    for name, indices in (splits or {}).items():
        arrays[_SPLIT_PREFIX + name] = np.asarray(indices, dtype=np.int64)
    return arrays


def write_npz(
    path: str | os.PathLike[str],
    structures: Iterable[Structure],
    *,
    splits: Mapping[str, npt.ArrayLike] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write equibit's own layout, compressed and atomically.

    Raises:
        StructureError: no structures.
        WriteError: the file cannot be written; what was there before stays.
    """
    from equibit.storage import atomic_bytes

    arrays = npz_arrays(structures, splits=splits, meta=meta)
    with atomic_bytes(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def agreed_units(source: Path, stated: Units | None, found: Units | None) -> Units:
    """The user's units or the file's, which must not contradict each other.

    Raises:
        UnitsError: neither is there, or they differ.
    """
    if stated is None and found is None:
        raise UnitsError(
            f"{source} does not state its units; pass them, as in --units kcal/mol,Å "
            '(in Python units=Units("kcal/mol", "Å"))'
        )
    if stated is None or found is None:
        return stated or found  # type: ignore[return-value]
    if str(stated) != str(found):
        raise UnitsError(f"{source} states its units as {found}, but you passed {stated}")
    return stated


def _find(source: Path, arrays: Arrays, what: str, named: str | None) -> npt.NDArray[Any] | None:
    if named is not None:
        if named not in arrays:
            raise FileFormatError(
                f"{source} has no {named!r} for the {what}; it has {', '.join(sorted(arrays))}"
            )
        return arrays[named]
    present = [key for key in KEYS[what] if key in arrays]
    if len(present) > 1:
        raise FileFormatError(
            f"{source} has both {' and '.join(present)} for the {what}; keep one of them"
        )
    return arrays[present[0]] if present else None


def _layout(
    arrays: Arrays, numbers: npt.NDArray[Any], positions: npt.NDArray[Any]
) -> tuple[IntArray, IntArray]:
    """Offsets and flat atomic numbers of either layout."""
    flat = np.asarray(numbers)
    if flat.dtype.kind not in "iu" and not (_floats(flat) == np.rint(_floats(flat))).all():
        raise ValueError("the atomic numbers are not whole numbers")
    flat = flat.astype(np.int64)
    if "n_atoms" in arrays:
        sizes = np.asarray(arrays["n_atoms"]).astype(np.int64)
        if sizes.ndim != 1 or sizes.size == 0 or (sizes < 1).any():
            raise ValueError("n_atoms must list at least one structure of at least one atom")
        if flat.shape != (sizes.sum(),) or positions.shape != (sizes.sum(), 3):
            raise ValueError(
                f"n_atoms add up to {sizes.sum()}, but numbers have shape {flat.shape} and "
                f"positions {positions.shape}"
            )
        return np.concatenate([[0], np.cumsum(sizes)]), flat
    shape = positions.shape
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ValueError(f"positions have shape {shape}; expected (structures, atoms, 3)")
    if flat.shape not in ((shape[1],), shape[:2]):
        raise ValueError(f"numbers have shape {flat.shape}, but positions {shape}")
    offsets = np.arange(shape[0] + 1, dtype=np.int64) * shape[1]
    return offsets, np.broadcast_to(flat, shape[:2]).reshape(-1)


def _floats(array: npt.NDArray[Any]) -> FloatArray:
    if array.dtype.kind not in "iuf":
        raise ValueError(f"an array of numbers is needed, not of {array.dtype}")
    return np.asarray(array, dtype=np.float64)


def _label(
    found: Mapping[str, npt.NDArray[Any] | None], what: str, shape: tuple[int, ...], factor: float
) -> FloatArray | None:
    array = found[what]
    if array is None:
        return None
    if array.size != np.prod(shape):
        raise ValueError(f"{what} have shape {array.shape}; expected {shape}")
    return _floats(array).reshape(shape) * factor


def _cells(
    arrays: Arrays, found: Mapping[str, npt.NDArray[Any] | None], n_structures: int
) -> tuple[FloatArray | None, npt.NDArray[np.bool_] | None]:
    if found["cell"] is not None:
        cells = np.broadcast_to(_floats(found["cell"]), (n_structures, 3, 3))
        given = found["pbc"]
        if given is None:
            raise ValueError("there is a cell but no pbc; add pbc (true for periodic directions)")
        return cells, np.broadcast_to(given.astype(bool), (n_structures, 3))
    if "lattice" in arrays:  # sGDML: one periodic cell, lattice vectors as columns
        lattice = _floats(arrays["lattice"])
        if lattice.shape != (3, 3):
            raise ValueError(f"lattice has shape {lattice.shape}; expected (3, 3)")
        cells = np.broadcast_to(lattice.T, (n_structures, 3, 3))
        return cells, np.ones((n_structures, 3), dtype=bool)
    return None, None


def _apply_masks(arrays: Arrays, structures: PackedStructures) -> None:
    """Labels that the file marks as absent become NaN."""
    owner = np.repeat(np.arange(len(structures)), structures.sizes)
    for key, labels, index in (
        ("known_E", structures.energies, slice(None)),
        ("known_F", structures.forces, owner),
        ("known_stress", structures.stresses, slice(None)),
    ):
        if key in arrays and labels is not None:
            known = np.asarray(arrays[key]).astype(bool)
            if known.shape != (len(structures),):
                raise ValueError(f"{key} has shape {known.shape}; expected ({len(structures)},)")
            labels[~known[index]] = np.nan


def _bad_labels(structures: PackedStructures, arrays: Arrays) -> Iterator[tuple[int, str]]:
    """Structures whose labels are neither finite nor marked absent, and what is wrong with them."""
    owner = np.repeat(np.arange(len(structures)), structures.sizes)
    for what, key, labels, index in (
        ("energy", "known_E", structures.energies, np.arange(len(structures))),
        ("forces", "known_F", structures.forces, owner),
        ("stress", "known_stress", structures.stresses, np.arange(len(structures))),
    ):
        if labels is None:
            continue
        known = np.asarray(arrays[key]).astype(bool)[index] if key in arrays else True
        finite = np.isfinite(labels).reshape(len(labels), -1).all(axis=1)
        for row in np.flatnonzero(~finite & known):
            yield int(index[row]), f"its label of {what} is {labels[row]}; all must be finite"


def _splits(arrays: Arrays, n_structures: int) -> dict[str, IntArray]:
    splits = {}
    for key, array in arrays.items():
        if not key.startswith(_SPLIT_PREFIX):
            continue
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"{key} must be a list of whole numbers")
        if array.size and (array.min() < 0 or array.max() >= n_structures):
            raise ValueError(f"{key} points beyond the {n_structures} structures")
        splits[key.removeprefix(_SPLIT_PREFIX)] = array.astype(np.int64)
    return splits


def _meta(source: Path, arrays: Arrays) -> dict[str, Any]:
    if "meta" not in arrays:
        return {}
    try:
        meta = json.loads(str(arrays["meta"][()]))
        if not isinstance(meta, dict):
            raise ValueError("an object is needed")
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{source}: its meta is not JSON: {error}") from error
    if meta.get("format") == FORMAT_NAME and meta.get("version", 0) != FORMAT_VERSION:
        raise FileFormatError(
            f"{source} is of version {meta.get('version')}, but this equibit reads version "
            f"{FORMAT_VERSION}; upgrade equibit"
        )
    return meta


def _stated_units(source: Path, arrays: Arrays, meta: Mapping[str, Any]) -> Units | None:
    """Units from meta (by the keys E, R and F), from sGDML's e_unit and r_unit, or from energy_unit and force_unit."""

    def text(key: str) -> str | None:
        value = arrays.get(key)
        if value is None or value.size != 1:
            return None
        item = value.reshape(-1)[0]
        return item.decode(errors="replace") if isinstance(item, bytes) else str(item)

    try:
        stated = meta.get("units")
        if isinstance(stated, Mapping):
            return Units(str(stated["E"]), str(stated["R"]), stated.get("F"))
        energy, length = text("e_unit"), text("r_unit")
        if energy and length:
            return Units(energy, length)
        energy, force, length = text("energy_unit"), text("force_unit"), text("length_unit")
        if energy and (force or length):
            return Units(energy, length or units_of_force(str(force)).length, force)
    except (UnitsError, KeyError, TypeError, AttributeError) as error:
        raise UnitsError(f"{source} states units that equibit cannot read: {error}") from error
    return None


def _infos(arrays: Arrays) -> list[dict[str, Any]] | None:
    if "info" not in arrays:
        return None
    infos = json.loads(str(arrays["info"][()]))
    if not isinstance(infos, list) or not all(isinstance(item, dict) for item in infos):
        raise ValueError("info is not a list of JSON objects")
    return infos


def _add_mask(arrays: dict[str, npt.NDArray[Any]], key: str, known: npt.NDArray[np.bool_]) -> None:
    if not known.all():
        arrays[f"known_{key}"] = known


def _json_value(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"info holds a {type(value).__name__}, which JSON cannot")
