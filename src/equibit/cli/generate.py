"""``equibit data generate``: a labelled set for a molecule that has no data yet."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from equibit.cli.tables import key_value_table
from equibit.structures.errors import DatasetError

if TYPE_CHECKING:
    from equibit.datasets.generate import (
        CostEstimate,
        GeneratedSet,
        GenerationSettings,
        GenerationState,
    )

app = typer.Typer()


@app.command()
def generate(
    molecule: Annotated[
        str, typer.Argument(help="An xyz file, or a name: ethanol, CH3CH2OH, benzene, …")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The set to write: .npz, .xyz or .extxyz."),
    ],
    method: Annotated[
        str, typer.Option(help="Level of the labels: gfn2-xtb, or functional/basis.")
    ] = "pbe/def2-svp",
    sampler: Annotated[str, typer.Option(help="Potential that drives the dynamics.")] = "gfn2-xtb",
    temperature: Annotated[float, typer.Option(help="Of the dynamics, in K.")] = 500.0,
    n_train: Annotated[int, typer.Option(help="Frames to train on.")] = 1000,
    n_test: Annotated[
        int, typer.Option(help="Frames to test on, from trajectories of their own.")
    ] = 200,
    spacing: Annotated[float, typer.Option(help="Time between frames, in fs.")] = 60.0,
    equilibration: Annotated[float, typer.Option(help="Time before the first frame, in fs.")] = (
        1000.0
    ),
    charge: Annotated[int, typer.Option(help="Total charge, in e.")] = 0,
    seed: Annotated[int, typer.Option(help="Of velocities and thermal noise.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes, one thread each.")] = 1,
    parts: Annotated[
        Path | None,
        typer.Option(help="Folder of finished parts, reused when called again [OUTPUT.parts]."),
    ] = None,
    licence: Annotated[str, typer.Option(help="Stated in the file.")] = "CC0-1.0",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time one label, print plan and cost, stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Sample a molecule by molecular dynamics and label the frames by quantum chemistry.

    An interrupted run goes on where it stopped when called again. Geometries are kept apart from
    labels: another --method on the same --parts folder labels the same geometries.
    """
    from equibit.datasets.generate import (
        GenerationSettings,
        check_output,
        estimate_cost,
        parts_folder,
        write_set,
    )
    from equibit.datasets.generate import generate as run_generation
    from equibit.datasets.sampling import SamplingSettings

    check_output(output)
    if output.exists():
        raise DatasetError(f"{output} exists; choose another name or remove it")
    if not output.absolute().parent.is_dir():
        raise DatasetError(f"there is no folder {output.absolute().parent}; create it first")
    settings = GenerationSettings(
        molecule=molecule,
        method=method,
        n_train=n_train,
        n_test=n_test,
        seed=seed,
        sampling=SamplingSettings(
            sampler=sampler,
            temperature=temperature,
            equilibration=equilibration,
            spacing=spacing,
            charge=charge,
        ),
        licence=licence,
    )
    folder = parts_folder(output) if parts is None else parts
    console = Console()
    if dry_run:
        figures = _plan(settings, estimate_cost(settings), workers, output, folder)
        _show(console, "This run would make", figures, as_json)
        return
    with _Progress(Console(stderr=True)) as progress:
        generated = run_generation(settings, folder, workers=workers, progress=progress.update)
    write_set(generated, output)
    _show(console, "Generated", _summary(generated, output), as_json)
    if not as_json:
        console.print(f"Next: equibit data inspect {output}")
    if generated.skipped and not as_json:
        console.print(
            f"{generated.skipped} frames are left out because no label converged; "
            "remove the output and repeat the command to try them again"
        )


class _Progress:
    """Two bars, geometries and labels, with the time left for the labels."""

    def __init__(self, console: Console) -> None:
        from rich import progress

        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            console=console,
            # Labels take seconds each: a long window steadies the time left.
            speed_estimate_period=600,
        )
        self._sampling = self._bars.add_task("geometries", total=None)
        self._labelling = self._bars.add_task("labels", total=None)

    def __enter__(self) -> _Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, state: GenerationState) -> None:
        if state.message:
            self._bars.console.print(state.message)
        skipped = f", {state.skipped} left out" if state.skipped else ""
        found = f" ({state.found} found{skipped})" if state.found or skipped else ""
        self._bars.update(self._sampling, total=state.total, completed=state.sampled)
        # What an earlier run left must not count as speed.
        self._bars.update(
            self._labelling,
            description=f"labels{found}",
            total=state.total - state.found,
            completed=state.labelled - state.found + state.skipped,
        )


def _plan(
    settings: GenerationSettings, cost: CostEstimate, workers: int, output: Path, parts: Path
) -> dict[str, Any]:
    return {
        "molecule": settings.molecule,
        "labels": settings.method,
        "train frames": settings.n_train,
        "test frames": settings.n_test,
        "temperature (K)": settings.sampling.temperature,
        "sampler": settings.sampling.sampler,
        "seconds per label": float(f"{cost.seconds_per_label:.2g}"),
        "seconds per step": float(f"{cost.seconds_per_step:.2g}"),
        "steps of dynamics": cost.n_steps,
        "workers": workers,
        "time on free cores": str(timedelta(seconds=round(cost.seconds(workers)))),
        "output": str(output),
        "parts": str(parts),
    }


def _summary(generated: GeneratedSet, output: Path) -> dict[str, Any]:
    from equibit.datasets.generate import describe

    figures = describe(generated)
    return {
        "output": str(output),
        "size (kB)": round(output.stat().st_size / 1000, 1),
        "train frames": figures.n_train,
        "test frames": figures.n_test,
        "left out": generated.skipped,
        "energy range (eV)": figures.energy_range,
        "force RMS (eV/Å)": figures.force_rms,
        "largest force (eV/Å)": figures.force_max,
        "largest net force (meV/Å)": figures.net_force_max_mev,
        "largest net torque (meV)": figures.net_torque_max_mev,
    }


def _show(console: Console, title: str, figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(figures, ensure_ascii=False))
    else:
        console.print(key_value_table(title, figures))
