"""``equibit md``: molecular dynamics in compiled code."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from equibit.cli.tables import key_value_table
from equibit.structures.errors import StructureError

if TYPE_CHECKING:
    from equibit.dynamics.run import DynamicsResult, Status
    from equibit.structures.structure import Structure

app = typer.Typer()


@app.command()
def md(
    model: Annotated[str, typer.Argument(help="Shipped model or path to a model file.")],
    structure: Annotated[
        str, typer.Argument(help="File with the starting structure, or a data set's name.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the run, made where it is missing.")
    ] = Path("runs/md"),
    steps: Annotated[
        int, typer.Option(help="Time steps in all; asked for more, an ended run goes on.")
    ] = 20_000,
    timestep: Annotated[float, typer.Option(help="Femtoseconds.")] = 0.5,
    ensemble: Annotated[
        str, typer.Option(help="nve conserves the energy, langevin keeps the temperature.")
    ] = "nve",
    temperature: Annotated[
        float, typer.Option(help="Kelvin, of the first velocities and of Langevin's bath.")
    ] = 300.0,
    friction: Annotated[float, typer.Option(help="Of Langevin's bath, 1/ps.")] = 1.0,
    outer: Annotated[
        str | None,
        typer.Option(help="Model of the outer force (r-RESPA), for example the FP32 parent."),
    ] = None,
    inner_steps: Annotated[int, typer.Option(help="Time steps per outer force.")] = 1,
    seed: Annotated[int, typer.Option(help="Of velocities and bath.")] = 0,
    index: Annotated[int, typer.Option(help="Which structure of the file, from 0.")] = 0,
    sample_every: Annotated[int, typer.Option(help="Steps between samples.")] = 100,
    frame_every: Annotated[int, typer.Option(help="Steps between frames.")] = 1000,
    trajectory_format: Annotated[
        str, typer.Option("--format", help="Of the trajectory: extxyz or traj (ASE).")
    ] = "extxyz",
    kernels: Annotated[
        str | None, typer.Option(help="Instruction set, where not the fastest.")
    ] = None,
    threads: Annotated[
        int, typer.Option(help="CPU threads; more than one pays from a few hundred atoms on.")
    ] = 1,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start afresh instead of going on where it stopped.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, time some steps, say what, stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Move atoms; an interrupted run goes on where it stopped, to the last bit, when called again.

    An ended one does so when called again with more steps.
    The folder receives the trajectory, samples.csv, dynamics.json and a picture of energy, drift,
    temperature and bond lengths. The status is 1 where the system collapsed.
    """
    from equibit.dynamics import DynamicsSettings, foresee, run_dynamics

    settings = DynamicsSettings(
        steps=steps,
        timestep=timestep,
        ensemble=ensemble,  # type: ignore[arg-type]
        temperature=temperature,
        friction=friction,
        outer=outer,
        inner_steps=inner_steps,
        seed=seed,
        sample_every=sample_every,
        frame_every=frame_every,
        trajectory_format=trajectory_format,
        kernels=kernels,
        threads=threads,
    )
    start = starting_structure(structure, index)
    console = Console(highlight=False, soft_wrap=True)
    if dry_run:
        outlook = foresee(model, start, settings, output, resume=not restart).to_json()
        if as_json:
            typer.echo(json.dumps(outlook))
        else:
            outlook["files"] = "\n".join(outlook["files"])
            console.print(key_value_table("This run would", outlook))
        return
    with progress() as watch:
        result = run_dynamics(model, start, settings, output, resume=not restart, watch=watch)
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        console.print(key_value_table("Moved", _figures(result)))
    if result.collapse is not None:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"the system collapsed at step {result.collapse.step} ({result.collapse.time:g} ps): "
            f"{result.collapse.reason}",
            style="bold red",
        )
        raise typer.Exit(1)


def starting_structure(name: str, index: int) -> Structure:
    """The structure of that index in a file, or in a data set by name.

    Raises:
        StructureError: there are not so many.
    """
    from itertools import islice

    from equibit.datasets.catalog import ENTRIES
    from equibit.datasets.dataset import load_dataset
    from equibit.structures.formats import iter_structures

    if index < 0:
        raise StructureError(f"--index {index}: count from 0")
    structures = load_dataset(name).structures if name in ENTRIES else iter_structures(name)
    for found in islice(structures, index, None):
        return found
    raise StructureError(f"{name} has no structure {index}")


def _figures(result: DynamicsResult) -> dict[str, object]:
    drift = result.drift
    error = "" if drift.error is None else f" ± {drift.error:.2g}"
    bonds = ", ".join(
        f"{label} {low:.2f}–{high:.2f} Å" for label, (low, _, high) in result.bonds.items()
    )
    return {
        "simulated": f"{result.time:g} ps in {result.steps} steps, {result.n_atoms} atoms",
        "energy drift": f"{drift.slope:.2g}{error} meV/atom/ps"
        if result.steps >= 2 * result.settings["sample_every"]
        else "needs more samples",
        "temperature": f"{result.temperature:.0f} ± {result.temperature_deviation:.0f} K",
        "bonds": bonds or "none watched",
        "speed": f"{result.ns_per_day:.3g} ns/day, {result.microseconds_per_step:.1f} µs per step "
        f"({result.kernels})",
        "trajectory": result.trajectory,
        "picture": result.picture or 'none: pip install "equibit[report]"',
    }


@contextlib.contextmanager
def progress() -> Iterator[Callable[[Status], None]]:
    """A bar on standard error with energy, temperature and speed."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("starts", total=None)

        def watch(status: Status) -> None:
            bars.update(
                task,
                completed=status.step,
                total=status.steps,
                description=f"{status.time:.1f} ps, E {status.energy:+.2f} meV/atom, "
                f"T {status.temperature:.0f} K, {status.ns_per_day:.1f} ns/day",
            )

        yield watch
