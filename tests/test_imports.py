"""What only runs models must stay light, and no layer may import one above it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import equibit

PACKAGE = Path(equibit.__file__).parent

# Everyone raises these, the lowest layer included.
ERRORS = "equibit.structures.errors"

LAYERS = [
    "storage",
    "structures",
    "datasets",
    "networks",
    "quantization",
    "models",
    "training",
    "evaluation",
    "engine",
    "dynamics",
    "interfaces",
    "experiments",
    "cli",
]

LIGHT = ["", "structures", "storage", "datasets", "engine", "dynamics", "interfaces", "cli.main"]


def output_of(program: str) -> str:
    """What a fresh interpreter prints that runs a program, which has to succeed."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("light", LIGHT)
def test_light_packages_import_no_heavy_library(light: str) -> None:
    module = "equibit" + (f".{light}" if light else "")
    program = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'e3nn', 'lightning', 'matplotlib', 'pyscf', 'tblite'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)\n"
    )
    output_of(program)


def test_the_calculator_costs_little_more_to_import_than_numpy() -> None:
    """Of 0.1 s on a quiet core numpy takes two thirds and ASE's base class most of the rest.

    Processor time is measured, beside numpy's in the same process, and the best of several kept:
    what else a machine does counts little then.
    """
    program = (
        "import time, sys\n"
        "import numpy\n"
        "base = time.process_time()\n"  # since the interpreter began
        "import equibit; equibit.Calculator\n"
        "spared = {'torch', 'pydantic', 'yaml', 'rich', 'typer', 'safetensors', 'matscipy', 'scipy',\n"
        "  'logging', 'concurrent.futures', 'difflib', 'numpy.typing', 'equibit.dynamics',\n"
        "  'ase.io', 'ase.calculators.singlepoint', 'ase.geometry', 'ase.build'}\n"
        "print((time.process_time() - base) / base, *sorted(spared & set(sys.modules)))\n"
    )
    ratios = []
    for _ in range(5):
        ratio, *imported = output_of(program).split()
        assert not imported
        ratios.append(float(ratio))
    assert min(ratios) < 0.7, ratios


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_imports_one_above_it(layer: str) -> None:
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    for source in sorted((PACKAGE / layer).rglob("*.py")):
        upward = _imported_layers(source) & above
        assert not upward, f"{source.relative_to(PACKAGE)} imports {sorted(upward)}"


def _imported_layers(source: Path) -> set[str]:
    """Packages of equibit that a module imports anywhere, functions and type checking included."""
    layers = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "equibit" and len(parts) > 1 and not name.startswith(ERRORS):
                layers.add(parts[1])
    return layers
