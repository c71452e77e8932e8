"""Turning what the public archives offer into the files that equibit reads."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from equibit.datasets.catalog import (
    QM9_CONVERTED,
    QM9_UNCHARACTERIZED,
    Entry,
)
from equibit.datasets.download import Progress, download, silent
from equibit.storage import atomic_bytes
from equibit.structures import DatasetError, Structure
from equibit.structures.formats.api import iter_structures
from equibit.structures.formats.npz import write_npz

_RMD17_FOLDERS = {".npz": "npz_data", ".csv": "splits"}
_N_QM9, _N_UNCHARACTERIZED = 133_885, 3_054


def fetch(entry: Entry, cache: Path, *, progress: Progress = silent) -> Path:
    """Download a data set into the cache and unpack it there.

    The archive of rMD17 holds all ten molecules, which are unpacked together; QM9 is converted to
    one array file without the 3,054 molecules that failed its authors' consistency check.

    Returns:
        The file of the data set.

    Raises:
        DatasetError: the download fails or is not what it should be (see ``download``).
        FileFormatError: QM9's archive holds a damaged molecule.
    """
    if entry.remote is None:
        raise DatasetError(f"{entry.name} comes with equibit and needs no download")
    folder = cache / entry.family
    archive = download(entry.remote, folder, progress=progress)
    if entry.family == "rmd17":
        return _unpack_rmd17(entry, archive, folder, progress)
    if entry.family == "qm9":
        return _convert_qm9(archive, folder, progress)
    return archive


def _unpack_rmd17(entry: Entry, archive: Path, folder: Path, progress: Progress) -> Path:
    """Every npz and csv of the archive; the archive goes once all of them are there."""
    stage = "unpacking"
    try:
        with archive.open("rb") as stream, tarfile.open(fileobj=stream, mode="r|bz2") as members:
            for member in members:
                name = Path(member.name).name
                target = folder / _RMD17_FOLDERS.get(Path(name).suffix, "") / name
                content = members.extractfile(member) if member.isfile() else None
                if content is None or Path(name).suffix not in _RMD17_FOLDERS:
                    continue
                target.parent.mkdir(exist_ok=True)
                with atomic_bytes(target) as file:
                    while piece := content.read(1 << 20):
                        file.write(piece)
                progress(stage, stream.tell(), archive.stat().st_size)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DatasetError(
            f"{archive} cannot be unpacked ({error}); delete it and repeat"
        ) from error
    path = folder / "npz_data" / f"rmd17_{entry.molecule}.npz"
    if not path.is_file():
        raise DatasetError(f"{archive} does not hold {path.name}; delete it and repeat")
    archive.unlink()
    return path


def _convert_qm9(archive: Path, folder: Path, progress: Progress) -> Path:
    excluded = _uncharacterized(download(QM9_UNCHARACTERIZED, folder, progress=progress))
    target = folder / QM9_CONVERTED

    def characterized() -> Iterator[Structure]:
        for count, molecule in enumerate(iter_structures(archive, format="qm9"), start=1):
            if count % 1000 == 0:
                progress("converting", count, _N_QM9)
            if molecule.info["gdb_index"] not in excluded:
                yield molecule

    write_npz(target, characterized(), meta={"name": "qm9", "left_out": "uncharacterized.txt"})
    archive.unlink()
    return target


def _uncharacterized(path: Path) -> set[int]:
    """Indices in QM9's list of molecules that failed the consistency check: nine lines of heading,
    one line a molecule beginning with its index, two lines of footer."""
    try:
        lines = path.read_text().split("\n")[9:-2]
        indices = {int(line.split()[0]) for line in lines}
    except (ValueError, IndexError, OSError) as error:
        raise DatasetError(f"{path} is not QM9's list of molecules: {error}") from error
    if len(indices) != _N_UNCHARACTERIZED:
        raise DatasetError(
            f"{path} lists {len(indices)} molecules, expected {_N_UNCHARACTERIZED}; delete it and "
            "repeat"
        )
    return indices
