"""Energy drift in dynamics, of one model over seeds."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from equibit.dynamics import DynamicsResult, DynamicsSettings, run_dynamics
from equibit.dynamics.run import Status
from equibit.evaluation.batches import Progress
from equibit.evaluation.record import Record
from equibit.structures.errors import ConfigError, ModelError
from equibit.structures.structure import Structure

_RESPA = re.compile(r"(?P<model>.+)\+(?P<outer>.+)/(?P<steps>\d+)")
_MOST_POINTS = 250  # per line of the figure


@dataclass(frozen=True)
class Contender:
    """Attributes:
    name: in table and figure.
    model: what moves the atoms.
    outer: model of the outer force of r-RESPA, or None.
    inner_steps: time steps between outer forces.
    """

    name: str
    model: str
    outer: str | None = None
    inner_steps: int = 1


def contender(text: str) -> Contender:
    """``MODEL``, or ``MODEL+OUTER/N`` for r-RESPA with the outer force every N steps.

    Raises:
        ConfigError: no model before the plus sign, or no number of steps.
    """
    if "+" not in text:
        return Contender(text, text)
    match = _RESPA.fullmatch(text)
    if match is None or int(match["steps"]) < 1:
        raise ConfigError(f"{text!r} is no contender: expected MODEL or MODEL+OUTER/STEPS")
    return Contender(text, match["model"], match["outer"], int(match["steps"]))


def file_name(contender: str) -> str:
    """The name of a contender with nothing that a file's name should not have."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", contender)


@dataclass(frozen=True)
class DriftRow(Record):
    """One contender over its seeds.

    Attributes:
        name, recipe: of the contender.
        seeds: that ran.
        slopes, errors: drift by seed, with its standard error, in meV/atom/ps.
        mean, spread: of the slopes; the spread is None for one seed.
        temperature: mean over seeds in K.
        collapsed: seeds whose system collapsed, with the reason.
        minutes: of wall time, mean over seeds.
        core_minutes: of processor time, which a busy machine hardly changes.
        reason: why it did not run, or None.
    """

    name: str
    recipe: str
    seeds: tuple[int, ...] = ()
    slopes: tuple[float, ...] = ()
    errors: tuple[float | None, ...] = ()
    mean: float | None = None
    spread: float | None = None
    temperature: float | None = None
    collapsed: Mapping[str, str] | None = None
    minutes: float | None = None
    core_minutes: float | None = None
    reason: str | None = None


def run_contender(
    entry: Contender,
    structure: Structure,
    settings: DynamicsSettings,
    seeds: Sequence[int],
    *,
    runs: Path,
    progress: Progress,
) -> tuple[dict[int, DynamicsResult], str | None]:
    """One contender with every seed, and why the rest did not run.

    Raises:
        ConfigError: a run's folder holds another run, or intervals that do not divide.
        WriteError: a file cannot be written.
    """
    made: dict[int, DynamicsResult] = {}
    for seed in seeds:
        title = f"{entry.name}, seed {seed}"

        def watch(status: Status, title: str = title) -> None:
            progress(title, status.step, status.steps)

        try:
            made[seed] = run_dynamics(
                entry.model,
                structure,
                replace(settings, seed=seed, outer=entry.outer, inner_steps=entry.inner_steps),
                runs / f"{file_name(entry.name)}-seed{seed}",
                watch=watch,
            )
        except ModelError as error:
            return made, str(error)
    return made, None


def drift_row(entry: Contender, made: Mapping[int, DynamicsResult], reason: str | None) -> DriftRow:
    """What the runs of a contender gave."""
    if not made:
        return DriftRow(entry.name, "–", reason=reason)
    slopes = [result.drift.slope for result in made.values()]
    return DriftRow(
        name=entry.name,
        recipe=next(iter(made.values())).recipe,
        seeds=tuple(made),
        slopes=tuple(slopes),
        errors=tuple(result.drift.error for result in made.values()),
        mean=float(np.mean(slopes)),
        spread=float(np.std(slopes, ddof=1)) if len(slopes) > 1 else None,
        temperature=float(np.mean([result.temperature for result in made.values()])),
        collapsed={
            str(seed): f"{result.collapse.time:g} ps: {result.collapse.reason}"
            for seed, result in made.items()
            if result.collapse is not None
        },
        minutes=float(np.mean([result.seconds for result in made.values()])) / 60,
        core_minutes=float(np.mean([result.core_seconds for result in made.values()])) / 60,
        reason=reason,
    )


def energy_line(result: DynamicsResult) -> tuple[list[float], list[float]]:
    """Time in ps and conserved energy less its first value in meV per atom, thinned."""
    with Path(result.samples).open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    kept = table[:: max(1, len(table) // _MOST_POINTS)]
    energies = [
        float(row["potential_ev"]) + float(row["kinetic_ev"]) - float(row["heat_ev"])
        for row in kept
    ]
    change = [1e3 * (energy - energies[0]) / result.n_atoms for energy in energies]
    times = [float(row["time_ps"]) for row in kept]
    return [round(time, 4) for time in times], [round(value, 5) for value in change]
