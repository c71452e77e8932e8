#!/usr/bin/env python3
"""Set everything up on a fresh machine, then run the main job or pass the tests.

    python3 scripts/bootstrap.py demo
    python3 scripts/bootstrap.py test

Needs Python 3.11 or newer and nothing else. The environment is made once, in .venv beside this
checkout, and reused until the package's dependencies change.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
CONSTRAINTS = CHECKOUT / "constraints.txt"
EXTRAS = {"demo": "train,report", "test": "all,docs,dev"}
HEARTBEAT = 20  # seconds between two signs of life


class StepError(Exception):
    """A step failed; the message says which and what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=sorted(EXTRAS), help="what to run once all is set up")
    parser.add_argument(
        "--venv", type=Path, default=CHECKOUT / ".venv", help="environment to make or reuse"
    )
    parser.add_argument(
        "--torch",
        metavar="REQUIREMENT",
        help="what to give pip for PyTorch instead of the pinned version, preferably for the CPU",
    )
    options = parser.parse_args()
    try:
        if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs this may have an older one
            raise StepError(
                f"this is Python {platform.python_version()}; run it with Python 3.11 or newer"
            )
        python = prepare(options.venv.absolute(), options.job, options.torch)
        return run_demo(python) if options.job == "demo" else run_tests(python)
    except StepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: repeat the command to go on where it stopped", file=sys.stderr)
        return 130


def prepare(venv: Path, job: str, torch: str | None) -> Path:
    """Make or reuse the environment and return its interpreter."""
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = venv / f"equibit-{job}.stamp"
    if not python.exists():
        step(
            f"Make a Python environment in {venv}",
            [sys.executable, "-m", "venv", str(venv)],
            "Python's venv module is needed; some Linux systems package it as python3-venv",
        )
    wanted = fingerprint(job, torch)
    if stamp.exists() and stamp.read_text() == wanted:
        say(f"Reuse the Python environment in {venv}")
        return python
    install_torch(python, torch, venv)
    install(
        f"Install equibit with its extras {EXTRAS[job]}",
        [*pip(python, torch), "--editable", f"{CHECKOUT}[{EXTRAS[job]}]"],
        venv,
        "the package index must be within reach",
    )
    stamp.write_text(wanted)
    return python


def install_torch(python: Path, requirement: str | None, venv: Path) -> None:
    """Install PyTorch before all else, as the CPU build where the index offers one.

    An index may hold several builds of one version. On Linux the plain one brings CUDA's libraries,
    some gigabytes, so the build labelled +cpu is asked for first.
    """
    present = subprocess.run(
        [str(python), "-c", "import torch"], capture_output=True, env=environment()
    )
    if present.returncode == 0:
        return
    pinned = pinned_torch()
    if requirement is None and sys.platform == "linux":
        try:
            install("Install PyTorch, CPU build", [*pip(python, None), f"{pinned}+cpu"], venv, "")
        except StepError:
            say("The package index offers no separate CPU build; take its plain one")
        else:
            return
    install(
        "Install PyTorch",
        [*pip(python, requirement), requirement or pinned],
        venv,
        "--torch names another build or version",
    )


def install(title: str, command: Sequence[str], venv: Path, advice: str) -> None:
    """Run pip with its chatter in a log, and say now and then how far it is.

    Raises:
        StepError: pip failed; the message ends with what it said last.
    """
    say(title)
    log = venv / "install.log"
    start = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=CHECKOUT, env=environment(), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        while True:
            try:
                status = process.wait(timeout=HEARTBEAT)
                break
            except subprocess.TimeoutExpired:
                print(f"    {time.monotonic() - start:.0f} s: {last_line(log)}", flush=True)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if status:
        errors = [line for line in log.read_text().splitlines() if line.startswith("ERROR")]
        raise StepError(
            f"{lower_first(title)} failed: {' '.join(errors) or last_line(log)} "
            f"(all of pip's output is in {log}); {advice}"
        )


def last_line(log: Path) -> str:
    """What pip is doing, without the bars it draws."""
    said = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    doing = [
        line for line in said if re.match("(Collect|Download|Process|Install|Build|Prepar)", line)
    ]
    return (doing or said or ["starting"])[-1][:100]


def run_demo(python: Path) -> int:
    step(
        "Quantise the shipped ethanol network and judge it",
        [str(python), "-m", "equibit", "demo"],
        "see the message above; the same command goes on where it stopped",
    )
    return 0


def run_tests(python: Path) -> int:
    """All checks, the test suite last so that its closing line closes the output."""
    with tempfile.TemporaryDirectory() as site:
        run = [str(python), "-m"]
        clang_format = str(python.with_name("clang-format"))
        checks = {
            "Lint": [*run, "ruff", "check", "."],
            "Check the format": [*run, "ruff", "format", "--check", "."],
            "Check the format of C and C++": [
                clang_format,
                "--dry-run",
                "-Werror",
                *native_files(),
            ],
            "Check the types": [*run, "mypy"],
            "Build the documentation": [*run, "mkdocs", "build", "--strict", "--quiet", "-d", site],
        }
        failed = []
        for title, command in checks.items():
            try:
                step(title, command, "see above")
            except StepError as error:
                failed.append(title.lower())
                say(str(error))
        if failed:
            say(f"Failed so far: {', '.join(failed)}")
        try:
            step("Run the tests", [*run, "pytest", "-n", "2"], "see above")
        except StepError:
            failed.append("tests")
    return 1 if failed else 0


def native_files() -> list[str]:
    """C and C++ of this package."""
    folders = ("examples", "fuzz", "include", "src", "tests")  # and not what a build leaves beside
    endings = {".c", ".cpp", ".h", ".inc"}
    found = [path for name in folders for path in (CHECKOUT / "native" / name).rglob("*")]
    return sorted(str(path.relative_to(CHECKOUT)) for path in found if path.suffix in endings)


def step(title: str, command: Sequence[str], advice: str) -> None:
    """Run one command with its output in view.

    Raises:
        StepError: it did not end with status 0.
    """
    say(title)
    start = time.monotonic()
    status = subprocess.run(command, cwd=CHECKOUT, env=environment()).returncode
    if status:
        raise StepError(
            f"{lower_first(title)} failed with status {status} after {time.monotonic() - start:.0f} s "
            f"({' '.join(command)}); {advice}"
        )


def environment() -> dict[str, str]:
    """The user's environment without what would mix other installations in."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "NO_MKDOCS_2_WARNING": "1"}
    return {**kept, **quiet, "PYTHONNOUSERSITE": "1"}


def pip(python: Path, torch: str | None) -> list[str]:
    """The pinned versions hold unless the user asked for another PyTorch."""
    pinned = [] if torch else ["--constraint", str(CONSTRAINTS)]
    return [str(python), "-m", "pip", "install", *pinned]


def pinned_torch() -> str:
    match = re.search(r"^torch==\S+", CONSTRAINTS.read_text(), re.MULTILINE)
    if match is None:
        raise StepError(f"{CONSTRAINTS} pins no torch==VERSION; restore the file")
    return match.group()


def fingerprint(job: str, torch: str | None) -> str:
    """What an environment depends on; a change means installing again."""
    content = (CHECKOUT / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes()
    native = CHECKOUT / "native"
    for source in sorted(path for path in native.rglob("*") if path.is_file()):
        content += source.read_bytes()
    return hashlib.sha256(content + f"{CHECKOUT}{EXTRAS[job]}{torch}".encode()).hexdigest()


def lower_first(title: str) -> str:
    return title[:1].lower() + title[1:]


def say(message: str) -> None:
    print(f"==> {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
