"""What a package costs to have: bytes on disk with everything it needs, and seconds to import."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import equibit
from equibit.evaluation.record import Record

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

IMPORT = """
import time, warnings
warnings.simplefilter("ignore")
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Footprint(Record):
    """Attributes:
    package, version: what is installed.
    own_megabytes: of the package alone.
    all_megabytes: with every installed package that it needs, PyTorch included.
    import_seconds: of a fresh interpreter, median; None where it cannot be imported.
    """

    package: str
    version: str
    own_megabytes: float
    all_megabytes: float
    import_seconds: float | None


def footprint(
    package: str, module: str, *, also: Sequence[str] = (), repeats: int = 3
) -> Footprint:
    """Measure an installed package, and with it what it needs without saying so.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    names = set().union(*map(requirements, (package, *also)))
    needed = {name: installed_bytes(name) for name in names}
    return Footprint(
        package=package,
        version=metadata.version(package),
        own_megabytes=needed[_normal(package)] / 1e6,
        all_megabytes=sum(needed.values()) / 1e6,
        import_seconds=import_seconds(module, repeats=repeats),
    )


def own_footprint(*, repeats: int = 3) -> Footprint:
    """equibit as it is installed to run models: its calculator, no PyTorch."""
    folder = Path(equibit.__file__).parent
    own = sum(path.stat().st_size for path in folder.rglob("*") if path.suffix != ".pyc")
    needed: dict[str, int] = {}
    for dependency in ("ase", "numpy", "pydantic", "pyyaml", "rich", "safetensors", "typer",
                       "matscipy"):  # fmt: skip
        needed |= {name: installed_bytes(name) for name in requirements(dependency)}
    return Footprint(
        package="equibit",
        version=equibit.__version__,
        own_megabytes=own / 1e6,
        all_megabytes=(own + sum(needed.values())) / 1e6,
        import_seconds=import_seconds("equibit.interfaces.ase", repeats=repeats),
    )


def requirements(package: str) -> set[str]:
    """A package and what it needs, directly or not, as far as it is installed; extras left out."""
    found: set[str] = set()
    waiting = [_normal(package)]
    while waiting:
        name = waiting.pop()
        if name in found or not _is_installed(name):
            continue
        found.add(name)
        waiting += _required(name)
    return found


def installed_bytes(package: str) -> int:
    """Bytes of the files that a package has installed, compiled Python aside."""
    total = 0
    for file in metadata.files(package) or []:
        path = Path(str(file.locate()))
        if path.suffix != ".pyc" and path.is_file():
            total += path.stat().st_size
    return total


def import_seconds(module: str, *, repeats: int = 3) -> float | None:
    """Median wall time of importing a module in a fresh interpreter, or None where that fails."""
    times = []
    source = Path(equibit.__file__).parents[1]
    paths = [str(source), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, "-c", IMPORT.format(module=module)],
            capture_output=True,
            text=True,
            env=environment,
        )
        if done.returncode:
            return None
        times.append(float(done.stdout.split()[-1]))
    return statistics.median(times)


def _required(name: str) -> Iterator[str]:
    for line in metadata.requires(name) or []:
        requirement, _, marker = line.partition(";")
        match = _NAME.match(requirement.strip())
        if match and "extra" not in marker:
            yield _normal(match.group())


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
