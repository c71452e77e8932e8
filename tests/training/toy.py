"""Water-like molecules labelled by a pair potential, and networks small enough to train in a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tests.evaluation.toy import MorsePotential

from equibit.structures import Structure
from equibit.structures.formats import write_structures
from equibit.training.config import TrainingConfig, validate_config

ATOMIC_ENERGIES = {1: -13.6, 6: -1029.0, 8: -2041.3}
WATER = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


def label(structures: list[Structure]) -> list[Structure]:
    """Morse energies on top of the energies of the atoms, and Morse forces."""
    potential = MorsePotential(depth=2.0, width=2.0, length=1.0)
    return [
        replace(
            structure,
            energy=prediction.energy + sum(ATOMIC_ENERGIES[int(z)] for z in structure.numbers),
            forces=prediction.forces,
        )
        for structure, prediction in zip(structures, potential.compute(structures), strict=True)
    ]


def waters(count: int, seed: int = 0, noise: float = 0.08) -> list[Structure]:
    generator = np.random.default_rng(seed)
    return label(
        [
            Structure([8, 1, 1], WATER + noise * generator.standard_normal((3, 3)))
            for _ in range(count)
        ]
    )


def mixed(count: int, seed: int = 0) -> list[Structure]:
    """Waters, hydroxyls, lone oxygens and a small periodic box, in turn."""
    generator = np.random.default_rng(seed)
    structures = []
    for k, water in enumerate(waters(count, seed)):
        n_atoms = (3, 2, 1, 3)[k % 4]
        periodic = k % 4 == 3
        structures.append(
            Structure(
                water.numbers[:n_atoms],
                water.positions[:n_atoms],
                cell=(3.4 + 0.2 * generator.random()) * np.eye(3) if periodic else None,
                pbc=np.full(3, periodic),
            )
        )
    return label(structures)


def data_file(folder: Path, structures: list[Structure] | None = None) -> Path:
    """An extended XYZ file; 40 structures train and 5 validate."""
    path = folder / "water.xyz"
    if not path.exists():
        write_structures(path, waters(50) if structures is None else structures)
    return path


def tree(folder: Path, **changes: Any) -> dict[str, Any]:
    """A run of two epochs as YAML would hold it.

    ``section__key=value`` and ``key=value`` change one entry.
    """
    values: dict[str, Any] = {
        "data": {"dataset": str(data_file(folder))},
        "network": {
            "architecture": "equivariant_transformer",
            "elements": [1, 8],
            "cutoff": 3.0,
            "irreps": "8x0e+8x1o",
            "layers": 1,
            "heads": 2,
            "radial_functions": 6,
            "splines": 12,
        },
        "optimization": {"epochs": 2, "batch_size": 5, "warmup_steps": 4, "ema_decay": 0.5},
        "run": {
            "output": str(folder / "run"),
            "device": "cpu",
            "compile": "off",
            "validate_every": 1,
            "checkpoint_every": 1,
        },
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            values.setdefault(section, {})[key] = value
        else:
            values[section] = value
    return values


def config(folder: Path, **changes: Any) -> TrainingConfig:
    return validate_config(tree(folder, **changes), source="test")
