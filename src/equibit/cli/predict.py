"""``equibit predict``: energies, forces and stresses of the structures in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from equibit.evaluation.predict import PredictionRun

app = typer.Typer()

_SKIPPED_SHOWN = 10


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Shipped model or path to a model file.")],
    structures: Annotated[
        Path, typer.Argument(help="File with structures: .xyz, .extxyz, .traj, .db, .npz.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="File to write: .xyz, .extxyz, .traj, .db, .npz."),
    ],
    units: Annotated[
        str | None,
        typer.Option(help="Units of the input where it does not state them: kcal/mol,Å."),
    ] = None,
    stress: Annotated[
        bool, typer.Option(help="Predict stresses of cells periodic in three directions.")
    ] = True,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Leave out structures that are damaged or that the model cannot predict, and list "
            "them in OUTPUT.skipped.json; otherwise the first of them is an error.",
        ),
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start afresh instead of going on where it stopped.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per call.")] = 32,
    threads: Annotated[
        int,
        typer.Option(
            min=1, max=256, help="CPU threads that share batches; no result depends on it."
        ),
    ] = 1,
    dtype: Annotated[
        str | None,
        typer.Option(help="Arithmetic: float32 or float64; the model's own if left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Predict for every structure of a file; an interrupted run goes on when called again.

    Files are streamed, so they may be larger than memory. The output is in Å, eV and eV/Å and
    appears only when it is complete.
    """
    from equibit.cli.options import checked_dtype
    from equibit.cli.progress import stage_progress
    from equibit.engine import load_preferred
    from equibit.evaluation.predict import fingerprint, predict_file
    from equibit.models import resolve_model
    from equibit.structures.formats.api import checked_output_format, detect_format
    from equibit.structures.units import parse_units

    checked_output_format(output)
    detect_format(structures)
    file_units = None if units is None else parse_units(units)
    potential = load_preferred(model, dtype=checked_dtype(dtype), threads=threads)
    with stage_progress() as progress:
        run = predict_file(
            potential,
            structures,
            output,
            units=file_units,
            stress=stress,
            skip_bad=skip_bad,
            resume=not restart,
            batch_size=batch_size,
            model_fingerprint=fingerprint(resolve_model(model)),
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(run.to_json()))
        return
    console = Console(highlight=False, soft_wrap=True)
    resumed = f" ({run.resumed} of them by the interrupted run)" if run.resumed else ""
    written = "1 structure" if run.written == 1 else f"{run.written} structures"
    console.print(f"{written} written to {run.output}{resumed}")
    if run.written > run.resumed:
        console.print(
            f"{run.structures_per_second:,.0f} structures/s, "
            f"{run.structures_per_core_second:,.0f} per second of one core"
        )
    if run.skipped:
        _print_skipped(console, structures, run)


def _print_skipped(console: Console, source: Path, run: PredictionRun) -> None:
    """The first few by name, and how many there are."""
    for skipped in run.skipped[:_SKIPPED_SHOWN]:
        console.print(f"{source}, structure {skipped.index}: {skipped.reason}", style="yellow")
    of_all = f"{len(run.skipped)} of {len(run.skipped) + run.written} structures skipped"
    console.print(f"{of_all}; every reason is in {run.skipped_list}", style="yellow")
