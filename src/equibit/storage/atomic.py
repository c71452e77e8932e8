"""Writers that leave either the whole new file or what was there before, never half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from equibit.structures.errors import EquibitError

_DEVICE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class WriteError(EquibitError, OSError):
    """A file cannot be written: full disk, missing folder, no permission."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends without an error.

    For libraries that insist on opening a path themselves; the suffix is kept, since many choose
    their format by it. On any error, Ctrl-C included, the temporary file is removed and an older
    file at ``path`` stays as it was. A symbolic link is written through.

    Raises:
        WriteError: the folder is missing or closed, ``path`` is no regular file, or the disk is full.
    """
    target = checked_target(path)
    temporary = target.with_name(f".equibit-{secrets.token_hex(8)}.part{target.suffix}")
    try:
        _create_empty(temporary, like=target)
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, target)
        _flush_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if _is_ours(error, temporary):
            raise _write_error(target, cast(OSError, error)) from error
        raise


@contextlib.contextmanager
def atomic_bytes(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that appears at ``path`` when the block ends without an error.

    Raises:
        WriteError: see :func:`atomic_path`.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


@contextlib.contextmanager
def atomic_text(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A UTF-8 file with ``\\n`` line ends that appears at ``path`` when the block ends without an error.

    Raises:
        WriteError: see :func:`atomic_path`.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
    ):
        yield file


def checked_target(path: str | os.PathLike[str]) -> Path:
    """Where a file will be written, links followed.

    Raises:
        WriteError: the folder is missing, or ``path`` is a folder or no regular file.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise WriteError(f"cannot write {path}: it is a folder; name a file")
    if target.exists() and not target.is_file():
        raise WriteError(f"cannot write {path}: it is not a regular file; name a file on disk")
    if not target.parent.is_dir():
        raise WriteError(
            f"cannot write {path}: there is no folder {target.parent}; create it first"
        )
    return target


def _create_empty(temporary: Path, like: Path) -> None:
    """Open with the user's umask, or the permissions of the file about to be replaced."""
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    os.close(descriptor)
    if like.exists():
        os.chmod(temporary, like.stat().st_mode & 0o777)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable; some systems cannot open a folder, and lose only that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_ours(error: BaseException, temporary: Path) -> bool:
    """Whether an error is about writing this file and not about something else in the block."""
    if not isinstance(error, OSError) or isinstance(error, EquibitError):
        return False
    return error.errno in _DEVICE_ERRORS or str(temporary) in (error.filename, error.filename2)


def _write_error(target: Path, error: OSError) -> WriteError:
    advice = {
        errno.ENOSPC: "; free some space and repeat",
        errno.EDQUOT: "; free some of your quota and repeat",
        errno.EACCES: "; choose a folder you may write to",
        errno.EROFS: "; choose a folder you may write to",
    }.get(error.errno or 0, "")
    reason = (error.strerror or str(error)).lower()
    return WriteError(f"cannot write {target}: {reason}{advice}; nothing was changed")
