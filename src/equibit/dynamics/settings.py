"""What a run of molecular dynamics does, checked before it begins."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from equibit.structures.errors import ConfigError

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class DynamicsSettings:
    """Attributes:
    steps: time steps.
    timestep: Δt in fs.
    ensemble: ``nve`` conserves the energy, ``langevin`` keeps the temperature.
    temperature: K, of the initial velocities and of Langevin's bath.
    friction: γ of Langevin's bath in 1/ps.
    inner_steps: with an outer model, time steps between its forces (r-RESPA).
    seed: of the initial velocities and of the bath.
    sample_every: steps between samples of energies, temperature and bond lengths.
    frame_every: steps between frames of the trajectory.
    skin: Å beyond the cutoff that the neighbour list looks ahead.
    checkpoint_seconds: wall time between checkpoints; changes nothing else.

    Raises:
        ConfigError: a number out of range, or intervals that do not divide.
    """

    steps: int
    timestep: float = 0.5
    ensemble: Literal["nve", "langevin"] = "nve"
    temperature: float = 300.0
    friction: float = 1.0
    inner_steps: int = 1
    seed: int = 0
    sample_every: int = 100
    frame_every: int = 1000
    skin: float = 0.5
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.ensemble not in ("nve", "langevin"):
            raise ConfigError(f"ensemble is {self.ensemble!r}; expected nve or langevin")
        for name in ("steps", "inner_steps", "sample_every", "frame_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
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
        """What decides the trajectory and the files, as opposed to how often a run is saved."""
        values = asdict(self)
        del values["checkpoint_seconds"]
        return values
