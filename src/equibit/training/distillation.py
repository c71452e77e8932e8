"""Labels from the FP32 parent itself, for users who have a checkpoint and no data."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.progress import track

from equibit.models import load_potential, resolve_model
from equibit.storage.atomic import atomic_text
from equibit.storage.checksum import file_sha256
from equibit.structures import ConfigError, Potential, Structure, StructureError
from equibit.structures.formats import read_structures, write_structures
from equibit.structures.formats.files import checked_file
from equibit.structures.structure import FloatArray
from equibit.training.config import StrictModel
from equibit.training.run import describe

BOLTZMANN = 8.617333262e-5  # eV/K
FORCE_TO_ACCELERATION = 9.648533212e-3  # (eV/Å)/u in Å/fs²
VALIDATION_SHARE = 0.1


class DistillationConfig(StrictModel):
    """How geometries are sampled.

    Attributes:
        start: file whose first structure starts the dynamics.
        temperature: of the Langevin thermostat, in K.
        samples: structures to keep, a tenth of them for validation.
        spacing: steps between kept structures.
        walkers: independent trajectories, advanced together; the last tenth validates.
        time_step: fs.
        friction: 1/fs.
        equilibration: steps before the first structure is kept.
        seed: of velocities and thermostat.
    """

    start: Path
    temperature: float = Field(default=500.0, gt=0)
    samples: int = Field(default=500, ge=20)
    spacing: int = Field(default=50, ge=1)
    walkers: int = Field(default=20, ge=2)
    time_step: float = Field(default=0.5, gt=0)
    friction: float = Field(default=0.02, gt=0)
    equilibration: int = Field(default=200, ge=0)
    seed: int = 0


def distilled_structures(
    parent: str, config: DistillationConfig, output: Path
) -> tuple[list[Structure], list[Structure], dict[str, Any]]:
    """Sample geometries by Langevin dynamics on the parent and label them with it.

    The samples are kept as ``distilled.extxyz`` in ``output``, so that an interrupted quantisation
    need not sample again.

    Returns:
        Training structures, validation structures (from trajectories of their own), and a record.

    Raises:
        ConfigError: the folder holds samples made with other settings.
        StructureError: the dynamics left the region where the parent can be trusted.
    """
    potential = load_potential(parent)
    path = output / "distilled.extxyz"
    settings = describe(config) | {
        "parent_sha256": file_sha256(resolve_model(parent)),
        "start_sha256": file_sha256(checked_file(config.start)),
    }
    if path.exists():
        _check_settings(path, settings)
        structures = read_structures(path)
    else:
        start = read_structures(config.start)[0]
        structures = sample_langevin(potential, start, config)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_text(path.with_suffix(".json")) as file:
            file.write(json.dumps(settings, indent=2) + "\n")
        write_structures(path, structures)
    n_validation = max(1, round(VALIDATION_SHARE * config.samples))
    record = {
        "dataset": f"sampled at {config.temperature:g} K from {config.start.name}",
        "labels": f"the FP32 parent {potential.info.name}",
        "split": None,
    }
    return structures[:-n_validation], structures[-n_validation:], record


def labelled_by(potential: Potential, structures: Sequence[Structure]) -> list[Structure]:
    """The same geometries with a potential's energies and forces in place of their labels."""
    return [
        replace(structure, energy=prediction.energy, forces=prediction.forces)
        for structure, prediction in zip(structures, potential.compute(structures), strict=True)
    ]


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Raise ``ConfigError`` where samples come from another parent or were sampled otherwise."""
    try:
        old = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        old = None
    if old != settings:
        raise ConfigError(
            f"{path} was sampled with other settings or from another parent; choose another output "
            "folder or remove the file"
        )


def sample_langevin(
    potential: Potential, start: Structure, config: DistillationConfig
) -> list[Structure]:
    """Geometries of a canonical ensemble, labelled by the potential.

    BAOAB splitting (Leimkuhler and Matthews 2013), all walkers in one batch; velocities start from
    the Maxwell-Boltzmann distribution. Trajectories come one after the other in the result.
    """
    from ase.data import atomic_masses

    rng = np.random.default_rng(config.seed)
    masses = atomic_masses[start.numbers][:, None]
    spread = np.sqrt(BOLTZMANN * config.temperature * FORCE_TO_ACCELERATION / masses)
    shape = (config.walkers, len(start), 3)
    positions = np.broadcast_to(start.positions, shape).copy()
    velocities = spread * rng.standard_normal(shape)
    walkers = [start] * config.walkers
    keep = math.exp(-config.friction * config.time_step)
    kick = 0.5 * config.time_step * FORCE_TO_ACCELERATION / masses
    per_walker = -(-config.samples // config.walkers)
    samples: list[list[Structure]] = [[] for _ in walkers]

    def labelled(positions: FloatArray) -> tuple[list[Structure], FloatArray]:
        moved = [replace(start, positions=p, energy=None, forces=None) for p in positions]
        result = labelled_by(potential, moved)
        return result, np.array([s.forces for s in result])

    walkers, forces = labelled(positions)
    limit = _plausible_energy(walkers[0], config.temperature)
    for step in track(
        range(1, config.equilibration + per_walker * config.spacing + 1),
        description="sampling geometries",
        console=Console(stderr=True),
    ):
        velocities += kick * forces
        positions += 0.5 * config.time_step * velocities
        velocities = keep * velocities + math.sqrt(1 - keep**2) * spread * rng.standard_normal(
            shape
        )
        positions += 0.5 * config.time_step * velocities
        walkers, forces = labelled(positions)
        velocities += kick * forces
        if not np.isfinite(forces).all() or any((w.energy or 0.0) > limit for w in walkers):
            raise StructureError(
                f"the parent's dynamics at {config.temperature:g} K broke down after {step} steps; "
                "lower the temperature or relax the starting structure"
            )
        if step > config.equilibration and (step - config.equilibration) % config.spacing == 0:
            for kept, walker in zip(samples, walkers, strict=True):
                kept.append(walker)
    return [s for kept in samples for s in kept][: config.samples]


def _plausible_energy(start: Structure, temperature: float) -> float:
    """The start's energy plus ten times the thermal energy of all its modes, and 5 eV."""
    return float(start.energy or 0.0) + 30 * len(start) * BOLTZMANN * temperature + 5.0
