"""Energy drift in NVE dynamics, model beside model, seed by seed: the papers' drift figure."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from equibit.dynamics import DynamicsResult, DynamicsSettings, run_dynamics
from equibit.dynamics.run import Watcher
from equibit.evaluation.provenance import Provenance
from equibit.evaluation.record import Record, to_plain
from equibit.storage import atomic_path, atomic_text
from equibit.structures.errors import ConfigError, ModelError
from equibit.structures.structure import Structure

_RESPA = re.compile(r"(?P<model>.+)\+(?P<outer>.+)/(?P<steps>\d+)")
_MOST_POINTS = 1000  # per line of the figure


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
        return Contender(Path(text).stem, text)
    match = _RESPA.fullmatch(text)
    if match is None or int(match["steps"]) < 1:
        raise ConfigError(f"{text!r} is no contender: expected MODEL or MODEL+OUTER/STEPS")
    name = f"{Path(match['model']).stem}+{Path(match['outer']).stem}/{match['steps']}"
    return Contender(name, match["model"], match["outer"], int(match["steps"]))


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


def measure_drift(
    contenders: Sequence[Contender],
    structure: Structure,
    settings: DynamicsSettings,
    seeds: Sequence[int],
    *,
    runs: Path,
    results: Path,
    command: str = "",
    watcher: Callable[[str], Watcher] | None = None,
) -> list[DriftRow]:
    """Run every contender with every seed, and write ``drift.json``, ``drift.md`` and ``drift.svg``.

    Runs that are there are not repeated, and interrupted ones go on.

    Args:
        contenders: what moves the atoms.
        structure: where all of them start.
        settings: of the runs, their seed and outer force aside.
        seeds: of the first velocities.
        runs: folder of the runs.
        results: folder of the three files.
        command: that was given, for the record.
        watcher: makes what watches a run, from its title.

    Raises:
        ConfigError: a run's folder holds another run, or intervals that do not divide.
        WriteError: a file cannot be written.
    """
    rows, lines = [], {}
    for entry in contenders:
        made, reason = run_contender(entry, structure, settings, seeds, runs=runs, watcher=watcher)
        rows.append(drift_row(entry, made, reason))
        lines[entry.name] = [energy_line(result) for result in made.values()]
    results.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "command": command,
        "settings": settings.physics(),
        "picoseconds": settings.picoseconds,
        "atoms": len(structure),
        "rows": [row.to_json() for row in rows],
        "provenance": to_plain(Provenance.here()),
    }
    with atomic_text(results / "drift.json") as file:
        file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    with atomic_text(results / "drift.md") as file:
        file.write(table_of(rows, settings))
    draw_drift(results / "drift.svg", lines, rows)
    return rows


def run_contender(
    entry: Contender,
    structure: Structure,
    settings: DynamicsSettings,
    seeds: Sequence[int],
    *,
    runs: Path,
    watcher: Callable[[str], Watcher] | None = None,
) -> tuple[dict[int, DynamicsResult], str | None]:
    """One contender with every seed, and why the rest did not run.

    Raises:
        ConfigError: a run's folder holds another run, or intervals that do not divide.
        WriteError: a file cannot be written.
    """
    made: dict[int, DynamicsResult] = {}
    for seed in seeds:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", entry.name)
        try:
            made[seed] = run_dynamics(
                entry.model,
                structure,
                replace(settings, seed=seed, outer=entry.outer, inner_steps=entry.inner_steps),
                runs / f"{name}-seed{seed}",
                watch=None if watcher is None else watcher(f"{entry.name}, seed {seed}"),
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


def table_of(rows: Sequence[DriftRow], settings: DynamicsSettings) -> str:
    """Markdown, one row per contender."""
    lines = [
        f"NVE, {settings.picoseconds:g} ps of {settings.timestep:g} fs steps from "
        f"{settings.temperature:g} K; drift in meV/atom/ps.",
        "",
        "| model | recipe | seeds | drift by seed (± error of the slope) | mean | collapsed | minutes | processor minutes |",
        "| --- | --- | ---: | --- | ---: | --- | ---: | ---: |",
    ]
    for row in rows:
        if row.mean is None:
            lines.append(f"| `{row.name}` | – | 0 | not run: {row.reason} | – | – | – | – |")
            continue
        by_seed = ", ".join(
            f"{slope:+.2g}" + ("" if error is None else f" ± {error:.1g}")
            for slope, error in zip(row.slopes, row.errors, strict=True)
        )
        spread = "" if row.spread is None else f" ± {row.spread:.1g}"
        collapsed = "; ".join(f"seed {k}: {v}" for k, v in (row.collapsed or {}).items()) or "no"
        lines.append(
            f"| `{row.name}` | {row.recipe} | {len(row.seeds)} | {by_seed} | {row.mean:+.2g}{spread} "
            f"| {collapsed} | {row.minutes:.1f} | {row.core_minutes:.1f} |"
        )
    return "\n".join(lines) + "\n"


def energy_line(result: DynamicsResult) -> tuple[list[float], list[float]]:
    """Time in ps and conserved energy less its first value in meV per atom, thinned."""
    with Path(result.samples).open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    every = max(1, len(table) // _MOST_POINTS)
    times = [float(row["time_ps"]) for row in table]
    energies = [
        float(row["potential_ev"]) + float(row["kinetic_ev"]) - float(row["heat_ev"])
        for row in table
    ]
    change = [1e3 * (energy - energies[0]) / result.n_atoms for energy in energies]
    return times[::every], change[::every]


def draw_drift(
    path: Path,
    lines: Mapping[str, Sequence[tuple[list[float], list[float]]]],
    rows: Sequence[DriftRow],
) -> None:
    """Total energy over time, one panel per contender that ran; needs matplotlib."""
    from matplotlib.figure import Figure

    ran = [row for row in rows if row.mean is not None]
    if not ran:
        return
    figure = Figure(figsize=(3.6 * len(ran), 3.4), layout="constrained")
    axes = figure.subplots(1, len(ran), squeeze=False)[0]
    for axis, row in zip(axes, ran, strict=True):
        for seed, (times, change) in zip(row.seeds, lines[row.name], strict=True):
            axis.plot(times, change, lw=0.5, label=f"seed {seed}")
        spread = "" if row.spread is None else f" ± {row.spread:.1g}"
        axis.set_title(f"{row.name}\n{row.mean:+.2g}{spread} meV/atom/ps", fontsize="small")
        axis.set_xlabel("time, ps")
        axis.grid(alpha=0.3, lw=0.5)
    axes[0].set_ylabel("total energy − start, meV/atom")
    axes[0].legend(fontsize="x-small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
