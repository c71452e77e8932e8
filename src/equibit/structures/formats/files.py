"""Checks that every reader makes before it looks into a file."""

from __future__ import annotations

import os
from pathlib import Path

from equibit.structures.errors import FileFormatError


def checked_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file that exists, can be read and holds at least one byte.

    Raises:
        FileFormatError: otherwise.
    """
    source = Path(path)
    try:
        if source.is_dir():
            raise FileFormatError(f"{source} is a folder; name a file")
        with source.open("rb") as file:
            if not file.read(1):
                raise FileFormatError(f"{source} is empty; copy or download it again")
    except FileNotFoundError as error:
        raise FileFormatError(f"there is no file {source}; check the path") from error
    except OSError as error:
        raise FileFormatError(f"{source} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a null byte in the path
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path!r} is no path of a file: {error}") from error
    return source
