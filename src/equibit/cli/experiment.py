"""``equibit experiment``: the published tables, made stage by stage, and model cards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from equibit.cli.stages import items, run_experiment
from equibit.structures.errors import ConfigError

app = typer.Typer(no_args_is_help=True)

Runs = Annotated[Path, typer.Option(help="Folder of checkpoints and models.")]
Results = Annotated[Path, typer.Option(help="Folder of figures and tables.")]


@app.command()
def ethanol(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Replacements in the training, e.g. optimization.epochs=200"),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
    labels: Annotated[str, typer.Option(help="rmd17, md17 or both, with a comma.")] = "rmd17,md17",
    recipes: Annotated[
        str, typer.Option(help="Low-bit forms beside the FP32 control, with commas.")
    ] = "w8a8,w4a8,naive-w8a8",
    stages: Annotated[
        str | None,
        typer.Option(help="Of train, quantize, evaluate and report, with commas; all without."),
    ] = None,
    training: Annotated[
        Path | None, typer.Option(help="Run description of the FP32 training.")
    ] = None,
    fine_tuning: Annotated[
        Path | None, typer.Option(help="Description of the fine-tuning.")
    ] = None,
    rotations: Annotated[int, typer.Option(min=1, help="Random rotations per structure.")] = 32,
    rotated_structures: Annotated[
        int, typer.Option(min=1, help="Rotate so many test structures, chosen by the seed.")
    ] = 25,
    runs: Runs = Path("runs/ethanol"),
    results: Results = Path("results/ethanol"),
    data_root: Annotated[
        Path | None, typer.Option(help="Folder with data sets (else EQUIBIT_DATA, then the cache).")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what is done and what is missing, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make the ethanol table: `equibit reproduce ethanol` with all its settings as options.

    Hours on one thread when run whole; done stages are skipped, and a run that was interrupted goes
    on, so seeds and stages can be taken one by one. The tables go to RESULTS, and into README.md
    and docs/results.md where these stand in the working directory.
    """
    from equibit.datasets.locations import DATA_VARIABLE
    from equibit.experiments.ethanol import Ethanol

    given: dict[str, Any] = {
        "training": training, "fine_tuning": fine_tuning, "threads": threads
    }  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None}
    if data_root is not None:
        os.environ[DATA_VARIABLE] = str(data_root)
    experiment = Ethanol.configured(
        seeds=items("--seeds", seeds),
        labels=items("--labels", labels),
        recipes=items("--recipes", recipes),
        overrides=tuple(overrides or ()),
        rotations=rotations,
        rotated_structures=rotated_structures,
        runs=runs,
        results=results,
        **given,
    )
    run_experiment(experiment, stages, dry_run=dry_run, as_json=as_json)


@app.command()
def drift(
    models: Annotated[
        str,
        typer.Option(help="With commas; MODEL+OUTER/N is r-RESPA, the outer force every N steps."),
    ] = "ethanol-fp32,ethanol-w8a8,ethanol-w4a8,ethanol-w4a8+ethanol-fp32/4,"
    "runs/ethanol/rmd17-naive-w8a8-seed0",
    structure: Annotated[
        str, typer.Option(help="Data set or file whose first structure all start from.")
    ] = "ethanol-pbe",
    seeds: Annotated[str, typer.Option(help="Of the first velocities, with commas.")] = "0,1,2,3,4",
    steps: Annotated[
        int, typer.Option(help="Time steps; 2,000,000 make a nanosecond.")
    ] = 2_000_000,
    timestep: Annotated[float, typer.Option(help="Femtoseconds.")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Kelvin, of the first velocities.")] = 300.0,
    runs: Runs = Path("runs/drift"),
    results: Results = Path("results/drift"),
) -> None:
    """Measure the energy drift of NVE dynamics, and draw the papers' figure.

    Minutes per nanosecond, model and seed. Runs that are there are not repeated and interrupted ones
    go on; the table, its JSON and the figure go to RESULTS.
    """
    from equibit.cli.md import progress, starting_structure
    from equibit.dynamics import DynamicsSettings
    from equibit.experiments.drift import contender, measure_drift, table_of

    settings = DynamicsSettings(
        steps=steps, timestep=timestep, temperature=temperature, frame_every=10_000
    )
    contenders = [contender(text) for text in items("--models", models)]
    numbers = [_whole(item) for item in items("--seeds", seeds)]
    with progress() as watcher:
        rows = measure_drift(
            contenders,
            starting_structure(structure, 0),
            settings,
            numbers,
            runs=runs,
            results=results,
            command=f"equibit experiment drift --models {models} --structure {structure} "
            f"--seeds {seeds} --steps {steps} --timestep {timestep} --temperature {temperature}",
            watcher=watcher,
        )
    typer.echo(table_of(rows, settings))
    typer.echo(f"written: {results / 'drift.json'}, drift.md and drift.svg")


@app.command()
def ship(
    molecule: Annotated[str, typer.Option(help="Of rMD17.")] = "ethanol",
    seed: Annotated[int, typer.Option(help="Whose models; settled before looking at errors.")] = 0,
    variants: Annotated[str, typer.Option(help="Which of them, with commas.")] = "fp32,w8a8,w4a8",
    folder: Annotated[
        Path, typer.Option(help="Where to; by default the package's sources.")
    ] = Path("src/equibit/models/files"),
    runs: Annotated[
        Path | None, typer.Option(help="Folder of models; runs/MOLECULE without.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Folder of figures; results/MOLECULE without.")
    ] = None,
) -> None:
    """Copy a molecule's trained models into the package, with a card each."""
    from equibit.experiments.ethanol import Ethanol, EthanolConfig
    from equibit.experiments.shipping import ship as ship_models
    from equibit.training.config import validated

    tree = {
        "molecule": molecule,
        "runs": runs or Path("runs", molecule),
        "results": results or Path("results", molecule),
    }
    experiment = Ethanol(validated(EthanolConfig, tree, source="--molecule"))
    for path in ship_models(experiment, folder, seed=seed, variants=items("--variants", variants)):
        Console(highlight=False, soft_wrap=True).print(f"written: {path}")


@app.command()
def card(
    model: Annotated[str, typer.Argument(help="Shipped model or path to a model file.")],
    evaluation: Annotated[
        Path, typer.Argument(help="evaluation.json that `equibit evaluate` wrote about it.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File; else beside the model.")
    ] = None,
    command: Annotated[str, typer.Option(help="The command that made the model.")] = "",
) -> None:
    """Write the card of a model: data, split, seed, figures, what is rounded, limits."""
    from equibit.experiments.cards import write_card
    from equibit.models import resolve_model

    try:
        plain = json.loads(evaluation.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{evaluation} is not an evaluation: {error}") from error
    path = write_card(resolve_model(model), plain, path=output, command=command)
    Console(highlight=False, soft_wrap=True).print(f"written: {path}")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"--seeds: {text!r} is no whole number") from error
