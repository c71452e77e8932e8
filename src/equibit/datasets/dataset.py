"""Data sets: structures with labels, how they are split, and where they came from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from equibit.datasets.catalog import ENTRIES, MD17_LABELS, Entry, find_entry
from equibit.datasets.download import Progress
from equibit.datasets.locations import locate
from equibit.datasets.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    SplitSizes,
    duplicate_groups,
    hold_out,
    random_split,
    split_structures,
)
from equibit.structures import (
    INTERNAL_UNITS,
    DatasetError,
    FileFormatError,
    Structure,
    Units,
    parse_units,
)
from equibit.structures.formats import LabelKeys, detect_format, read_structures
from equibit.structures.formats.files import checked_file
from equibit.structures.formats.npz import Arrays, load_arrays, read_npz, structures_from_arrays
from equibit.structures.structure import IntArray

VALIDATION_PART = 0.05
"""Part of an official training set that becomes the validation set: 50 of rMD17's 1,000."""

NOT_STATED = "not stated"

_OWN_MD17_SPLIT = SplitSizes(train=950, validation=50, test=1000)
_QM9_SPLIT = SplitSizes(train=0.8, validation=0.1, test=None)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Structures in Å, eV and eV/Å, and index arrays that say which serve for what.

    Attributes:
        name: name or path.
        structures: all of them.
        splits: indices into ``structures``, by ``train``, ``validation``, ``test``.
        labels: whose labels these are; sets with different labels must not share a column.
        level_of_theory: of the labels.
        units: of the file they came from (the structures are converted).
        source: the file or files.
        split_note: how the splits came about.
        citation: how to cite it.
        licence: its licence.
    """

    name: str
    structures: Sequence[Structure]
    splits: Mapping[str, IntArray]
    labels: str
    level_of_theory: str = NOT_STATED
    units: Units = field(default_factory=Units)
    source: str = ""
    split_note: str = ""
    citation: str = ""
    licence: str = ""

    def __len__(self) -> int:
        return len(self.structures)

    def subset(self, split: str, limit: int | None = None) -> list[Structure]:
        """The structures of one split in its order, the first ``limit`` of them if one is given.

        Raises:
            DatasetError: there is no such split.
        """
        if split not in self.splits:
            names = ", ".join(self.splits) or "none"
            raise DatasetError(f"{self.name} has no split {split!r}; it has {names}")
        return [self.structures[int(k)] for k in self.splits[split][:limit]]

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        found: set[int] = set()
        for structure in self.structures:
            found.update(np.unique(structure.numbers).tolist())
        return tuple(sorted(found))


def load_dataset(
    name_or_path: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    *,
    root: str | os.PathLike[str] | None = None,
    split: int = 1,
    sizes: SplitSizes | None = None,
    seed: int = 0,
    units: Units | str | None = None,
    format: str | None = None,  # noqa: A002
    keys: LabelKeys | None = None,
    download: bool = True,
    progress: Progress | None = None,
) -> Dataset:
    """A data set by name, a file of your own, or one file per split.

    Named sets (``equibit data list``) are looked for under ``root``, then under the folder that
    EQUIBIT_DATA names, then in the cache, and are otherwise downloaded into the cache. Their units
    are known. rMD17 comes with its official splits, 5 % of each training set being held out for
    validation (950 + 50 + 1,000). The original MD17 labels are the set ``md17/<molecule>``.

    Args:
        name_or_path: ``rmd17/ethanol``; or a path; or paths by split,
            ``{"train": ..., "validation": ..., "test": ...}``.
        root: folder with data sets.
        split: number of the official split, 1 to 5, where there are such.
        sizes: sizes of the splits of a file of your own; 80 %, 10 % and the rest when None.
        seed: of every random choice in a split.
        units: of a file of your own, or text such as ``kcal/mol,Å``; required if it does not state
            them.
        format: of a file of your own, where its suffix does not tell.
        keys: names of the labels in a file of your own, where they are not the usual ones.
        download: whether a named set may be downloaded; never when EQUIBIT_OFFLINE is set.
        progress: told how a download goes; a bar on the terminal when None.

    Raises:
        DatasetError: unknown name, not found and not to be downloaded, or a split that is not there.
        FileFormatError: a file that is missing, damaged or not of a known form.
        UnitsError: a file of unknown units.
    """
    stated = parse_units(units) if isinstance(units, str) else units
    if isinstance(name_or_path, Mapping):
        if sizes is not None:
            raise DatasetError("files for each split have their sizes; leave sizes out")
        paths = {name: Path(path) for name, path in name_or_path.items()}
        return _from_files(paths, seed, units=stated, format=format, keys=keys)
    if isinstance(name_or_path, str) and name_or_path in ENTRIES:
        _refuse(name_or_path, units=stated, sizes=sizes, format=format, keys=keys)
        entry = find_entry(name_or_path)
        path = locate(entry, root=root, download=download, progress=progress)
        return _named(entry, path, split=split, seed=seed)
    path = Path(name_or_path)
    if not (path.suffix or path.is_absolute() or path.exists()):
        find_entry(str(name_or_path))
    return _from_file(path, sizes or SplitSizes(), seed, units=stated, format=format, keys=keys)


def _refuse(name: str, **given: object) -> None:
    """Options that only files of one's own have."""
    for option, value in given.items():
        if value is not None:
            raise DatasetError(f"{name} defines its own {option}; leave {option} out")


def _named(entry: Entry, path: Path, *, split: int, seed: int) -> Dataset:
    arrays: Arrays = load_arrays(checked_file(path))
    if entry.family == "rmd17":
        splits, note = _rmd17_splits(path, arrays, split, seed)
    elif entry.family == "md17":
        arrays, splits, note = _md17(path, arrays, split, seed)
    elif entry.family == "qm9":
        return _qm9(entry, path, arrays, seed)
    else:
        return _from_arrays(entry, path, arrays, seed)
    content = structures_from_arrays(path, arrays, units=entry.units)
    return _described(entry, path, content.structures, splits, note)


def _described(
    entry: Entry,
    path: Path,
    structures: Sequence[Structure],
    splits: Mapping[str, IntArray],
    note: str,
) -> Dataset:
    return Dataset(
        name=entry.name,
        structures=structures,
        splits=splits,
        labels=entry.labels,
        level_of_theory=entry.level_of_theory,
        units=entry.units,
        source=str(path),
        split_note=note,
        citation=entry.citation,
        licence=entry.licence,
    )


def _rmd17_splits(
    path: Path, arrays: Arrays, split: int, seed: int
) -> tuple[dict[str, IntArray], str]:
    """Official splits: arrays train_idx_0k of the file itself, or the archive's csv files."""
    n_structures = len(arrays["coords"]) if "coords" in arrays else 0
    official = {part: _official_indices(path, arrays, part, split) for part in (TRAIN, TEST)}
    for part, indices in official.items():
        if indices.size == 0 or indices.min() < 0 or indices.max() >= n_structures:
            raise FileFormatError(f"{path}: official {part} split {split} does not fit the file")
    train, validation = _validation_of(official[TRAIN], seed)
    note = (
        f"official split {split}: {train.size} + {validation.size} of its "
        f"{official[TRAIN].size} training structures (seed {seed}), its {official[TEST].size} "
        "test structures"
    )
    return {TRAIN: train, VALIDATION: validation, TEST: official[TEST]}, note


def _official_indices(path: Path, arrays: Arrays, part: str, split: int) -> IntArray:
    key = f"{part}_idx_{split:02d}"
    if key in arrays:
        return arrays[key].astype(np.int64)
    for folder in (path.parent / "splits", path.parent.parent / "splits"):
        table = folder / f"index_{part}_{split:02d}.csv"
        if table.is_file():
            try:
                return np.loadtxt(table, dtype=np.int64, ndmin=1)
            except (ValueError, OSError) as error:
                raise FileFormatError(f"{table} is not a list of indices: {error}") from error
    prefix = f"{part}_idx_"
    present = sorted(int(name.removeprefix(prefix)) for name in arrays if name.startswith(prefix))
    found = f"it has {', '.join(map(str, present))}" if present else "it has none"
    raise DatasetError(f"{path} has no official split {split}; {found}")


def _validation_of(train: IntArray, seed: int) -> tuple[IntArray, IntArray]:
    return hold_out(train, max(1, round(VALIDATION_PART * train.size)), seed=seed)


def _md17(
    path: Path, arrays: Arrays, split: int, seed: int
) -> tuple[Arrays, dict[str, IntArray], str]:
    """The original labels: beside rMD17's for split 1's geometries, or the original archive file."""
    if MD17_LABELS not in arrays:
        if "coords" in arrays:
            raise DatasetError(f"{path} holds rMD17 labels only, not the original ones of MD17")
        counts = _OWN_MD17_SPLIT.counts(len(arrays["R"]) if "R" in arrays else 0)
        n_structures = len(arrays["R"])
        note = f"random, seed {seed}: MD17 has no official split"
        return arrays, random_split(n_structures, counts, seed=seed), note
    if split != 1:
        raise DatasetError(f"{path} has MD17 labels for split 1 only, not for split {split}")
    train, test = (_official_indices(path, arrays, part, 1) for part in (TRAIN, TEST))
    rows = np.concatenate([train, test])
    if len(arrays[MD17_LABELS]) != rows.size:
        raise FileFormatError(f"{path}: its MD17 labels do not match its official split 1")
    original = {
        "nuclear_charges": arrays["nuclear_charges"],
        "coords": arrays["coords"][rows],
        "energies": arrays[MD17_LABELS],
        "forces": arrays["md17_forces_split01"],
    }
    rest, validation = _validation_of(np.arange(train.size), seed)
    splits = {TRAIN: rest, VALIDATION: validation, TEST: np.arange(train.size, rows.size)}
    note = (
        f"the geometries of rMD17's official split 1: {rest.size} + {validation.size} training "
        f"structures (seed {seed}), {test.size} test structures"
    )
    return original, splits, note


def _qm9(entry: Entry, path: Path, arrays: Arrays, seed: int) -> Dataset:
    partial = "e_elec_b3lyp_ha" in arrays
    if partial:
        arrays = {
            "n_atoms": arrays["n_atoms"],
            "z": arrays["z"],
            "R": arrays["pos"],
            "E": arrays["e_elec_b3lyp_ha"],
        }
    content = structures_from_arrays(path, arrays, units=entry.units if partial else None)
    counts = _QM9_SPLIT.counts(len(content.structures))
    note = f"random, seed {seed}"
    if partial:
        note += f"; {len(content.structures)} molecules without fluorine, not the whole of QM9"
    splits = random_split(len(content.structures), counts, seed=seed)
    return _described(entry, path, content.structures, splits, note)


def _from_arrays(entry: Entry, path: Path, arrays: Arrays, seed: int) -> Dataset:
    content = structures_from_arrays(path, arrays)
    splits, note = _completed(path, content.splits, len(content.structures), seed)
    return _described(entry, path, content.structures, splits, note)


def _completed(
    path: Path, splits: Mapping[str, IntArray], n_structures: int, seed: int
) -> tuple[dict[str, IntArray], str]:
    """The file's own splits, with a validation set held out of the training set if it has none."""
    if TRAIN not in splits:
        raise FileFormatError(f"{path} has splits {', '.join(splits)} but none called {TRAIN}")
    completed = dict(splits)
    note = "the file's own"
    if VALIDATION not in splits:
        completed[TRAIN], completed[VALIDATION] = _validation_of(splits[TRAIN], seed)
        note += f", {completed[VALIDATION].size} training structures held out (seed {seed})"
    _check_disjoint(path, completed)
    usual = [name for name in (TRAIN, VALIDATION, TEST) if name in completed]
    others = sorted(set(completed) - set(usual))
    return {name: completed[name] for name in (*usual, *others)}, note


def _check_disjoint(path: Path, splits: Mapping[str, IntArray]) -> None:
    everything = np.concatenate(list(splits.values()))
    values, counts = np.unique(everything, return_counts=True)
    if (counts > 1).any():
        raise FileFormatError(
            f"{path}: structure {values[counts > 1][0]} is in more than one split, or twice in one"
        )


def _from_file(
    path: Path,
    sizes: SplitSizes,
    seed: int,
    *,
    units: Units | None,
    format: str | None,  # noqa: A002
    keys: LabelKeys | None,
) -> Dataset:
    if (format or detect_format(path)) == "npz":
        content = read_npz(path, units=units, keys=keys)
        structures: Sequence[Structure] = content.structures
        level = str(content.meta.get("level", NOT_STATED))
        read_units, own_splits = content.units, content.splits
    else:
        structures = read_structures(path, format=format, units=units, keys=keys)
        level, own_splits = NOT_STATED, {}
        read_units = units or INTERNAL_UNITS
    if own_splits:
        splits, note = _completed(path, own_splits, len(structures), seed)
    else:
        splits, note = split_structures(structures, sizes, seed=seed), f"random, seed {seed}"
    return Dataset(
        name=path.stem,
        structures=structures,
        splits=splits,
        labels=path.stem,
        level_of_theory=level,
        units=read_units,
        source=str(path),
        split_note=note,
    )


def _from_files(
    paths: Mapping[str, Path],
    seed: int,
    *,
    units: Units | None,
    format: str | None,  # noqa: A002
    keys: LabelKeys | None,
) -> Dataset:
    unknown = sorted(set(paths) - {TRAIN, VALIDATION, TEST})
    if unknown or TRAIN not in paths:
        raise DatasetError(
            f"files are given for {', '.join(paths) or 'nothing'}; expected {TRAIN}, and perhaps "
            f"{VALIDATION} and {TEST}"
        )
    structures: list[Structure] = []
    splits = {}
    for name in (part for part in (TRAIN, VALIDATION, TEST) if part in paths):
        read = read_structures(paths[name], format=format, units=units, keys=keys)
        splits[name] = np.arange(len(structures), len(structures) + len(read))
        structures += read
    note = "one file each"
    if VALIDATION not in splits:
        splits[TRAIN], splits[VALIDATION] = _validation_of(splits[TRAIN], seed)
        note += f", {splits[VALIDATION].size} training structures held out (seed {seed})"
    _check_no_leak(structures, splits, paths)
    train = paths[TRAIN]
    return Dataset(
        name=train.stem,
        structures=structures,
        splits={part: splits[part] for part in (TRAIN, VALIDATION, TEST) if part in splits},
        labels=train.stem,
        units=units or INTERNAL_UNITS,
        source=", ".join(map(str, paths.values())),
        split_note=note,
    )


def _check_no_leak(
    structures: Sequence[Structure],
    splits: Mapping[str, IntArray],
    paths: Mapping[str, Path],
) -> None:
    """Refuse a test file that repeats structures of the training or validation file."""
    if TEST not in splits:
        return
    groups = duplicate_groups(structures)
    seen = np.concatenate([groups[splits[name]] for name in splits if name != TEST])
    leaked = np.flatnonzero(np.isin(groups[splits[TEST]], seen))
    if leaked.size:
        raise DatasetError(
            f"{leaked.size} structures of {paths[TEST]} are also in the training or validation "
            f"file, the first being structure {leaked[0]}; remove them, or the test says nothing"
        )
