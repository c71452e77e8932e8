"""One picture of a run: energy, drift, temperature, bond lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equibit.dynamics.samples import BLOCKS, Drift, Samples
from equibit.storage import atomic_path
from equibit.structures.structure import FloatArray

_MOST_POINTS = 4000  # per line; more would not be seen


def draw_run(path: Path, samples: Samples, drift: Drift, *, title: str, reason: str | None) -> None:
    """Draw the samples of a run.

    Args:
        path: PNG, SVG or PDF, by its suffix.
        samples: of the run.
        drift: of its conserved energy.
        title: name of the model.
        reason: why the system collapsed, or None.

    Raises:
        WriteError: the file cannot be written.
    """
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots(2, 2)
    change = samples.conserved - samples.conserved[0]
    every = max(1, len(samples.time) // _MOST_POINTS)
    shown = slice(None, None, every)
    time = samples.time[shown]

    energy = axes[0, 0]
    energy.plot(time, 1e3 * change[shown], lw=0.6)
    _label(energy, "conserved energy − start, meV")

    _draw_drift(axes[0, 1], samples.time, 1e3 * change, drift)

    temperature = axes[1, 0]
    temperature.plot(time, samples.temperature[shown], lw=0.4)
    mean = float(np.nanmean(samples.temperature))
    temperature.axhline(mean, color="black", lw=0.8, label=f"mean {mean:.0f} K")
    temperature.legend(loc="upper right", fontsize="small")
    _label(temperature, "temperature, K")

    bonds = axes[1, 1]
    for kind, label in enumerate(samples.labels):
        mean_length, low, high = samples.bonds[shown, kind].T
        (line,) = bonds.plot(time, mean_length, lw=0.6, label=label)
        bonds.fill_between(time, low, high, color=line.get_color(), alpha=0.2, lw=0)
    if samples.labels:
        bonds.legend(loc="upper right", fontsize="small", ncols=2)
    _label(bonds, "bonds: mean and range, Å")

    heading = f"{title}, {samples.time[-1]:g} ps"
    figure.suptitle(heading if reason is None else f"{heading}: collapsed, {reason}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _draw_drift(axis: Axes, time: FloatArray, energy: FloatArray, drift: Drift) -> None:
    blocks = min(BLOCKS, len(time))
    x = np.array([block.mean() for block in np.array_split(time, blocks)])
    y = np.array([block.mean() for block in np.array_split(energy, blocks)])
    axis.plot(x, y, "o", ms=4, label="block means")
    if len(x) > 1:
        slope = np.polyfit(x - x.mean(), y, 1)[0]
        error = "" if drift.error is None else f" ± {drift.error:.1g}"
        axis.plot(
            x,
            y.mean() + slope * (x - x.mean()),
            color="black",
            lw=0.8,
            label=f"drift {drift.slope:.2g}{error} meV/atom/ps",
        )
    axis.legend(loc="best", fontsize="small")
    _label(axis, "conserved energy − start, meV")


def _label(axis: Axes, what: str) -> None:
    axis.set_xlabel("time, ps")
    axis.set_ylabel(what)
    axis.grid(alpha=0.3, lw=0.5)
