"""Where and with what a result was made, so that it can be repeated and compared."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from equibit.evaluation.record import Record

_PACKAGES = ("equibit", "numpy", "torch", "ase")


@dataclass(frozen=True)
class Provenance(Record):
    """Attributes:
    date: UTC, ISO 8601.
    cpu: model name of the processor.
    cores: logical cores this process may use.
    threads: arithmetic threads in use.
    platform: operating system and machine.
    versions: of Python and the packages that computed.
    gpu: name of the CUDA device where torch sees one, else None.
    commit: of the package's sources, with ``+changes`` where they differ; None outside a checkout.
    """

    date: str
    cpu: str
    cores: int
    threads: int
    platform: str
    versions: Mapping[str, str]
    gpu: str | None = None
    commit: str | None = None

    @classmethod
    def here(cls) -> Provenance:
        return cls(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            cpu=cpu_model(),
            cores=_cores(),
            threads=threads(),
            platform=f"{platform.system()} {platform.machine()}",
            versions={"python": platform.python_version(), **_package_versions()},
            gpu=gpu_model(),
            commit=source_commit(),
        )


def cpu_model() -> str:
    """Model name of the processor, as the operating system calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu_model() -> str | None:
    """Name of the first CUDA device, None without one or without torch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name(0))


@cache
def source_commit() -> str | None:
    """Commit of the checkout that holds this package, None where there is none."""
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def threads() -> int:
    """Threads of torch where it is loaded, else OMP_NUM_THREADS, else all cores."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdigit() and int(setting) > 0 else _cores()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        if package == "torch" and "torch" not in sys.modules:
            continue
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            module = sys.modules.get(package)
            if module is not None:
                versions[package] = str(getattr(module, "__version__", "unknown"))
    return versions
