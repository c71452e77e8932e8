"""Downloads that resume, are checked, and appear whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from equibit.datasets.catalog import RemoteFile
from equibit.structures import DatasetError

Progress = Callable[[str, int, int | None], None]
"""Called with a file's name, the bytes that are here and the bytes in all (None: unknown)."""

_CHUNK = 1 << 18
_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 3  # per address, each going on where the last one stopped


def silent(filename: str, done: int, total: int | None) -> None:
    """The progress callback that reports nothing."""


def download(
    remote: RemoteFile,
    folder: Path,
    *,
    progress: Progress = silent,
    retry_delay: float = 1.0,
) -> Path:
    """Fetch one file of an archive into a folder.

    Bytes go to ``<name>.part``, which stays after an interruption and is continued by the next call
    (HTTP Range); only a file of the right size and checksum gets its name. A part whose checksum is
    wrong is deleted.

    Args:
        remote: what to fetch; its addresses are tried in order.
        folder: where to; created if need be.
        progress: called after every piece.
        retry_delay: seconds before a broken transfer is taken up again, doubled each time.

    Raises:
        DatasetError: no address answers, the checksum or size is wrong, or the disk is full. The
            message says what to download by hand and where to put it.
    """
    target, part = folder / remote.filename, folder / f"{remote.filename}.part"
    failure = ""
    try:
        if target.is_file():
            _check(target, remote)
            return target
        folder.mkdir(parents=True, exist_ok=True)
        for url in remote.urls:
            try:
                _fetch_with_retries(url, part, remote, progress, retry_delay)
                _check(part, remote)
            except _WrongContentError as error:
                part.unlink()
                failure = f"{url}: {error}"
            except _TRANSFER_ERRORS as error:
                failure = f"{url}: {getattr(error, 'reason', None) or error}"
            else:
                os.replace(part, target)
                return target
    except _WrongContentError as error:
        raise DatasetError(f"{target} is not what the archive holds: {error}; delete it") from error
    except OSError as error:
        raise DatasetError(
            f"cannot write {part}: {error.strerror or error}; free some space or set EQUIBIT_CACHE "
            "to another folder, and repeat: the download goes on where it stopped"
        ) from error
    raise DatasetError(f"cannot download {remote.filename} ({failure}); {by_hand(remote, folder)}")


def by_hand(remote: RemoteFile, folder: Path) -> str:
    """What to download with other means, and where to put it."""
    size = f", {remote.size / 1e6:.0f} MB" if remote.size else ""
    checksum = f", MD5 {remote.md5}" if remote.md5 else ""
    return (
        f"download {' or '.join(remote.urls)} ({remote.filename}{size}{checksum}) on a machine with "
        f"access and put it into {folder}, then repeat the command"
    )


class _WrongContentError(Exception):
    """The bytes came, but they are not the file."""


_TRANSFER_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
)


def _fetch_with_retries(
    url: str, part: Path, remote: RemoteFile, progress: Progress, retry_delay: float
) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            _fetch(url, part, remote, progress)
            return
        except _TRANSFER_ERRORS as error:
            if attempt == _ATTEMPTS - 1 or not _worth_repeating(error):
                raise
            time.sleep(retry_delay * 2**attempt)


def _fetch(url: str, part: Path, remote: RemoteFile, progress: Progress) -> None:
    """Append what is missing to the part file; a server without Range starts from the beginning."""
    done = part.stat().st_size if part.exists() else 0
    if remote.size is not None and done >= remote.size:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "equibit"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # the part is whole, or its checksum will tell
        raise
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if not resumed:
            done = 0
        length = response.headers.get("Content-Length")
        total = remote.size or (done + int(length) if length else None)
        with part.open("ab" if resumed else "wb") as file:
            progress(remote.filename, done, total)
            while piece := response.read(_CHUNK):
                file.write(piece)
                done += len(piece)
                progress(remote.filename, done, total)
        if total is not None and done < total:
            raise ConnectionError(f"the connection ended {total - done} bytes early")


def _check(path: Path, remote: RemoteFile) -> None:
    problem = ""
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        problem = f"it has {size} bytes instead of {remote.size}"
    elif remote.md5 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(
                file, lambda: hashlib.md5(usedforsecurity=False)
            ).hexdigest()
        if found != remote.md5:
            problem = f"its MD5 is {found} instead of {remote.md5}"
    if problem:
        raise _WrongContentError(problem)


def _worth_repeating(error: Exception) -> bool:
    """A refused or unknown address stays so; a broken transfer or a busy server may not."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500
    if isinstance(error, urllib.error.URLError):
        return isinstance(error.reason, TimeoutError)
    return True
