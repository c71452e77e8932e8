"""Where data sets are looked for."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from equibit.datasets.catalog import MD17_LABELS, Entry
from equibit.datasets.download import Progress, by_hand
from equibit.datasets.fetch import fetch
from equibit.datasets.progress import progress_bar
from equibit.structures import DatasetError

DATA_VARIABLE = "EQUIBIT_DATA"
CACHE_VARIABLE = "EQUIBIT_CACHE"
OFFLINE_VARIABLE = "EQUIBIT_OFFLINE"

PACKAGE_FILES = Path(__file__).parent / "files"


def cache_folder() -> Path:
    """Where downloads are kept: EQUIBIT_CACHE, or ``~/.cache/equibit``."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "equibit"


def data_folders(root: str | os.PathLike[str] | None = None) -> list[Path]:
    """The folders that are searched, in order: ``root``, EQUIBIT_DATA, the cache.

    Raises:
        DatasetError: ``root`` or the folder that EQUIBIT_DATA names is not there.
    """
    folders = []
    for origin, named in (
        ("the data folder", root),
        (DATA_VARIABLE, os.environ.get(DATA_VARIABLE)),
    ):
        if named:
            folder = Path(named).expanduser()
            if not folder.is_dir():
                raise DatasetError(f"{origin} {folder} is not a folder; name an existing one")
            folders.append(folder)
    return [*folders, cache_folder()]


def find(entry: Entry, *, root: str | os.PathLike[str] | None = None) -> Path | None:
    """The file of a data set, or None when it is nowhere on this machine.

    Raises:
        DatasetError: see :func:`data_folders`.
    """
    folders = data_folders(root) if entry.remote is not None else [PACKAGE_FILES]
    candidates = [folder / name for folder in folders for name in entry.files]
    return next((path for path in candidates if path.is_file() and _holds(entry, path)), None)


def locate(
    entry: Entry,
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress: Progress | None = None,
) -> Path:
    """The file of a data set, downloaded into the cache if need be.

    Args:
        entry: the data set.
        root: folder to look in first.
        download: whether it may be downloaded; never when EQUIBIT_OFFLINE is set.
        progress: told how the download goes; a bar on the terminal when None.

    Raises:
        DatasetError: it is not on this machine and cannot or must not be downloaded; the message
            says what to download and where to put it.
    """
    path = find(entry, root=root)
    if path is not None:
        return path
    if entry.remote is None:
        raise DatasetError(
            f"{entry.name} comes with equibit, but {PACKAGE_FILES / entry.files[0]} is missing; "
            "install equibit again"
        )
    if not download or os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0"):
        looked = ", ".join(map(str, data_folders(root)))
        raise DatasetError(
            f"{entry.name} is not in {looked}, and downloads are off; "
            f"{by_hand(entry.remote, cache_folder() / entry.family)}; or name the folder that holds "
            f"{entry.files[0]} by --data-root or {DATA_VARIABLE}"
        )
    if progress is None:
        with progress_bar() as bar:
            return fetch(entry, cache_folder(), progress=bar)
    return fetch(entry, cache_folder(), progress=progress)


def _holds(entry: Entry, path: Path) -> bool:
    """Whether the file has the labels: rMD17's file holds those of MD17 only in some editions."""
    if entry.family != "md17" or not path.name.startswith("rmd17_"):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{MD17_LABELS}.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
