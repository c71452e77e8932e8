"""The container of models, checkpoints and datasets: a safetensors file with a checked header.

The safetensors metadata entry ``equibit`` is the text::

    {"sha256":"<64 hex digits>","header":<body>}

where ``<body>`` is a JSON object with at least ``kind`` and ``version``, and the digest is the
SHA-256 of the body's UTF-8 bytes followed, for each tensor in ascending order of name, by the line
``\\n<name> <dtype> <comma-separated shape>\\n`` and the tensor's little-endian row-major bytes.
Nothing in such a file is executed on reading.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from equibit.storage.atomic import atomic_bytes
from equibit.storage.versions import CURRENT_VERSIONS, UPGRADES, Header, Tensors
from equibit.structures.errors import FileFormatError

METADATA_KEY = "equibit"

_AGAIN = "copy or download it again"

_ENVELOPE = re.compile(r'\{"sha256":"([0-9a-f]{64})","header":(\{.*\})\}', re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_.:/\-]+")
_DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        [
            "bool",
            "int8",
            "uint8",
            "int16",
            "uint16",
            "int32",
            "uint32",
            "int64",
            "uint64",
            "float16",
            "float32",
            "float64",
        ]
    )
}


@dataclass(frozen=True, eq=False)
class Container:
    """What a checked file holds, already at the current version of its kind.

    Attributes:
        header: JSON values, ``kind`` and ``version`` among them.
        tensors: arrays by name, writable and owned by the caller.
    """

    header: Header
    tensors: Tensors


def write_container(
    path: str | os.PathLike[str],
    tensors: Mapping[str, npt.NDArray[Any]],
    header: Mapping[str, Any],
) -> None:
    """Write tensors and a JSON header as one checked file, atomically and reproducibly.

    The same content gives the same bytes on any machine.

    Args:
        path: where the file goes; an older file is replaced only once the new one is complete.
        tensors: boolean, integer or real arrays by name (letters, digits and ``_.:/-``).
        header: JSON values. ``kind`` is one of the keys of ``CURRENT_VERSIONS``; ``version``
            defaults to the current one of that kind.

    Raises:
        ValueError: unknown kind, version that is not current, tensor name or dtype that the format
            cannot hold, or a header that is not strict JSON (NaN included).
        WriteError: the file cannot be written; what was there before stays.
    """
    from safetensors.numpy import save

    kind = header.get("kind")
    if kind not in CURRENT_VERSIONS:
        raise ValueError(f"header kind is {kind!r}; expected one of {sorted(CURRENT_VERSIONS)}")
    version = header.get("version", CURRENT_VERSIONS[kind])
    if version != CURRENT_VERSIONS[kind]:
        raise ValueError(
            f"header version is {version!r}; {kind} files are written as version "
            f"{CURRENT_VERSIONS[kind]}"
        )
    stored = {name: _storable(name, tensor) for name, tensor in tensors.items()}
    body = _json({**header, "version": version})
    digest = _digest(body, stored)
    data = save(stored, {METADATA_KEY: f'{{"sha256":"{digest}","header":{body}}}'})
    with atomic_bytes(path) as file:
        file.write(data)


def read_container(path: str | os.PathLike[str], *, kind: str) -> Container:
    """Read a file, check every byte of it, and bring it up to the current version of its kind.

    Args:
        path: the file.
        kind: what it must hold, a key of ``CURRENT_VERSIONS``.

    Raises:
        FileFormatError: the file is missing, empty, truncated, of another program, damaged, of
            another kind, or of a version that this equibit does not know.
    """
    source = Path(path)
    envelope, tensors = _read_safetensors(source)
    match = _ENVELOPE.fullmatch(envelope)
    if match is None:
        raise FileFormatError(f"{source} is damaged: its header is not readable; {_AGAIN}")
    digest, body = match.groups()
    if digest != _digest(body, tensors):
        raise FileFormatError(f"{source} is damaged: its checksum does not match; {_AGAIN}")
    header = _parsed(source, body)
    if header["kind"] != kind:
        raise FileFormatError(f"{source} holds a {header['kind']}, but a {kind} is needed here")
    return _upgraded(source, header, tensors)


def _storable(name: str, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not _NAME.fullmatch(name) or name == "__metadata__":
        raise ValueError(f"tensor name {name!r}: use letters, digits and _ . : / - only")
    array = np.asarray(tensor)
    dtype = _DTYPES.get(array.dtype.name)
    if dtype is None:
        raise ValueError(f"tensor {name} is {array.dtype}; expected one of {', '.join(_DTYPES)}")
    return np.asarray(array, dtype=dtype, order="C")


def _json(header: Mapping[str, Any]) -> str:
    try:
        return json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the header is not strict JSON: {error}") from error


def _digest(body: str, tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    checksum = hashlib.sha256(body.encode())
    for name, tensor in sorted(tensors.items()):
        shape = ",".join(map(str, tensor.shape))
        checksum.update(f"\n{name} {tensor.dtype.name} {shape}\n".encode())
        little_endian = np.asarray(tensor, dtype=_DTYPES[tensor.dtype.name], order="C")
        checksum.update(little_endian.reshape(-1).view(np.uint8).data)
    return checksum.hexdigest()


def _parsed(source: Path, body: str) -> Header:
    try:
        header: Header = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{source}: its header is not JSON: {error}") from error
    version = header.get("version")
    if not isinstance(header.get("kind"), str) or type(version) is not int or version < 1:
        raise FileFormatError(f"{source}: its header does not say its kind and version")
    return header


def _read_safetensors(source: Path) -> tuple[str, Tensors]:
    """The equibit metadata text and the tensors of a file that safetensors accepts."""
    from safetensors import SafetensorError, safe_open

    size = _size_of(source)
    try:
        with safe_open(str(source), framework="np") as file:
            envelope = (file.metadata() or {}).get(METADATA_KEY)
            if envelope is None:
                raise FileFormatError(
                    f"{source} is a safetensors file, but not one that equibit wrote"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise FileFormatError(_why_unreadable(source, size)) from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{source} is damaged: {error}; {_AGAIN}") from error
    except OSError as error:
        raise FileFormatError(f"{source} cannot be read: {error.strerror or error}") from error
    unknown = [name for name, tensor in tensors.items() if tensor.dtype.name not in _DTYPES]
    if unknown:
        raise FileFormatError(
            f"{source} is damaged: tensor {unknown[0]} is {tensors[unknown[0]].dtype}; {_AGAIN}"
        )
    return envelope, tensors


def _size_of(source: Path) -> int:
    try:
        if source.is_dir():
            raise FileFormatError(f"{source} is a folder; name a file")
        size = source.stat().st_size
        with source.open("rb"):
            pass
    except FileNotFoundError as error:
        raise FileFormatError(f"there is no file {source}; check the path") from error
    except OSError as error:
        raise FileFormatError(f"{source} cannot be read: {error.strerror or error}") from error
    if size == 0:
        raise FileFormatError(f"{source} is empty; {_AGAIN}")
    return size


def _why_unreadable(source: Path, size: int) -> str:
    """Tell a file cut short from a foreign one by safetensors' leading 8-byte header length."""
    with source.open("rb") as file:
        start = file.read(9)
    foreign = f"{source} is not an equibit file, or its beginning is damaged"
    if size <= 8:
        return f"{foreign}: it has only {size} bytes"
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{" or length >= 2**40:
        return foreign
    if size < 8 + length:
        return f"{source} is truncated: it ends within its header; {_AGAIN}"
    return f"{source} is truncated or damaged: header and length disagree; {_AGAIN}"


def _upgraded(source: Path, header: Header, tensors: Tensors) -> Container:
    kind, version = header["kind"], header["version"]
    current = CURRENT_VERSIONS[kind]
    if version > current:
        raise FileFormatError(
            f"{source} is a {kind} of version {version}, but this equibit reads up to version "
            f"{current}; upgrade equibit"
        )
    while version < current:
        upgrade = UPGRADES[kind].get(version)
        if upgrade is None:
            raise FileFormatError(
                f"{source} is a {kind} of version {version}, which equibit no longer reads; "
                "write it again with the version of equibit that made it"
            )
        header, tensors = upgrade(header, tensors)
        version += 1
        header = {**header, "version": version}
    return Container(header=header, tensors=tensors)
