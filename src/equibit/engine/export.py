"""One model file to give away: checked, at the current version, and tried in the engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from equibit.engine.potential import is_built, load
from equibit.evaluation.record import Record
from equibit.models.shipped import resolve_model
from equibit.storage import read_container, write_container
from equibit.storage.checksum import file_sha256
from equibit.storage.versions import CURRENT_VERSIONS
from equibit.structures.errors import FileFormatError, ModelError
from equibit.structures.structure import Structure


@dataclass(frozen=True)
class ExportedModel(Record):
    """What ``export_model`` wrote.

    Attributes:
        file, bytes, sha256: the file.
        name, recipe: of the model.
        version: of the file format.
        engine: the instruction set that ran it here, or why the engine does not.
        runs_in_engine: whether it does.
    """

    file: str
    bytes: int
    sha256: str
    name: str
    recipe: str
    version: int
    engine: str
    runs_in_engine: bool


def export_model(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, name: str | None = None
) -> ExportedModel:
    """Write a model as one file that Python and the C library load.

    The source is checked byte by byte and brought to the current version of the format; where the
    engine runs the model, it computes each of its elements before the file is written.

    Args:
        source: shipped name, model file, or the folder of a finished run.
        target: the file to write; ``.safetensors`` is expected.
        name: of the model from now on; unchanged when None.

    Raises:
        ModelError: no such model.
        FileFormatError: a damaged, foreign, newer or inconsistent source, or a target with another
            suffix or that is the source.
        WriteError: the file cannot be written; what was there before stays.
    """
    path, output = resolve_model(Path(source)), Path(target)
    if output.suffix != ".safetensors":
        raise FileFormatError(f"{output}: name a file that ends in .safetensors")
    if output.exists() and output.resolve() == path.resolve():
        raise FileFormatError(f"{output} is the model itself; name another file")
    container = read_container(path, kind="model")
    try:
        recipe = (container.header.get("quantization") or {"recipe": {"name": "fp32"}})["recipe"]
        header = container.header | {"name": str(name or container.header["name"])}
        recipe_name = str(recipe["name"])
    except (KeyError, TypeError) as error:
        raise FileFormatError(f"{path}: its header says nothing about {error}") from error
    engine, runs = _tried(path)
    write_container(output, container.tensors, header)
    return ExportedModel(
        file=str(output),
        bytes=output.stat().st_size,
        sha256=file_sha256(output),
        name=header["name"],
        recipe=recipe_name,
        version=CURRENT_VERSIONS["model"],
        engine=engine,
        runs_in_engine=runs,
    )


def _tried(path: Path) -> tuple[str, bool]:
    """Whether the engine runs a model, and with what or why not.

    Raises:
        FileFormatError: a file that is damaged or inconsistent.
    """
    if not is_built():
        return "not tried: the compiled engine is not built here", False
    try:
        potential = load(path)
    except ModelError as error:
        return str(error).removeprefix(f"{path}: "), False
    numbers = np.array(potential.info.elements)
    spread = np.zeros((len(numbers), 3))
    spread[:, 0] = 1.2 * np.arange(len(numbers))
    try:
        potential.compute([Structure(numbers, spread)])
    except ModelError as error:
        raise FileFormatError(f"{path} computes nothing usable: {error}") from error
    return potential.kernels, True
