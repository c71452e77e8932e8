"""What a run of molecular dynamics does, checked before it begins."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

from equibit.structures.errors import ConfigError

MAX_SEED = 2**63 - 1
MAX_THREADS = 256
TRAJECTORIES = {"extxyz": "trajectory.xyz", "traj": "trajectory.traj"}
"""File names of trajectories by format."""

# Not of the trajectory: the digests of models are told apart from their names.
_NOT_PHYSICS = ("outer", "trajectory_format", "kernels", "threads", "checkpoint_seconds")


@dataclass(frozen=True)
class DynamicsSettings:
    """Attributes:
    steps: time steps.
    timestep: Δt in fs.
    ensemble: ``nve`` conserves the energy, ``langevin`` keeps the temperature.
    temperature: K, of the initial velocities and of Langevin's bath.
    friction: γ of Langevin's bath in 1/ps.
    outer: model of the outer force (r-RESPA): shipped name, model file or run folder.
    inner_steps: with an outer model, time steps between its forces.
    seed: of the initial velocities and of the bath.
    sample_every: steps between samples of energies, temperature and bond lengths.
    frame_every: steps between frames of the trajectory.
    trajectory_format: ``extxyz`` or ``traj`` (ASE).
    skin: Å beyond the cutoff that the neighbour list looks ahead.
    kernels: instruction set by name; the fastest when None.
    threads: that share each step; more than one pays from a few hundred atoms on.
    checkpoint_seconds: wall time between checkpoints; changes nothing else.

    Raises:
        ConfigError: a number out of range, or intervals that do not divide.
    """

    steps: int
    timestep: float = 0.5
    ensemble: Literal["nve", "langevin"] = "nve"
    temperature: float = 300.0
    friction: float = 1.0
    outer: str | os.PathLike[str] | None = None
    inner_steps: int = 1
    seed: int = 0
    sample_every: int = 100
    frame_every: int = 1000
    trajectory_format: str = "extxyz"
    skin: float = 0.5
    kernels: str | None = None
    threads: int = 1
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.ensemble not in ("nve", "langevin"):
            raise ConfigError(f"ensemble is {self.ensemble!r}; expected nve or langevin")
        if self.trajectory_format not in TRAJECTORIES:
            known = " or ".join(TRAJECTORIES)
            raise ConfigError(f"trajectories are written as {known}, not {self.trajectory_format}")
        if not 1 <= self.threads <= MAX_THREADS:
            raise ConfigError(f"threads is {self.threads}; expected 1 to {MAX_THREADS}")
        for name in ("steps", "inner_steps", "sample_every", "frame_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.outer is None and self.inner_steps > 1:
            raise ConfigError("inner_steps above 1 need an outer model")
        for name, low in (
            ("timestep", 1e-6),
            ("temperature", 0.0),
            ("friction", 1e-9),
            ("skin", 0.0),
            ("checkpoint_seconds", 0.0),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= low):
                raise ConfigError(f"{name} is {value}; expected a number of at least {low:g}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed is {self.seed}; expected 0 to {MAX_SEED}")
        for long, short in (
            ("sample_every", "inner_steps"),
            ("frame_every", "sample_every"),
            ("steps", "sample_every"),
        ):
            if getattr(self, long) % getattr(self, short):
                raise ConfigError(
                    f"{long} is {getattr(self, long)}; it must be a multiple of {short}, which is "
                    f"{getattr(self, short)}"
                )

    @property
    def picoseconds(self) -> float:
        """Simulated time."""
        return self.steps * self.timestep * 1e-3

    def physics(self) -> dict[str, Any]:
        """What decides how the atoms move, models aside, as opposed to where and how fast."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_PHYSICS}
