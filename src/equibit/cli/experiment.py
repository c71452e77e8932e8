"""``equibit experiment``: the published tables, made stage by stage, and model cards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from equibit.structures.errors import ConfigError

if TYPE_CHECKING:
    from equibit.experiments.ethanol import Ethanol, Stage

app = typer.Typer(no_args_is_help=True)

STAGES = ("train", "quantize", "evaluate", "table")
DOCUMENTS = (Path("README.md"), Path("docs/results.md"))

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
    stages: Annotated[str, typer.Option(help="What to do, with commas.")] = ",".join(STAGES),
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
    """Make the ethanol table: FP32, control and low-bit networks, several seeds.

    Hours on one thread when run whole; done stages are skipped, and a run that was interrupted goes
    on, so seeds and stages can be taken one by one. The tables go to RESULTS, and into README.md
    and docs/results.md where these stand in the working directory.
    """
    from equibit.cli.progress import stage_progress
    from equibit.datasets.locations import DATA_VARIABLE
    from equibit.experiments.ethanol import Ethanol, EthanolConfig
    from equibit.experiments.ethanol_table import make_table, read_results, write_table

    wanted = _choice("--stages", stages, STAGES)
    given: dict[str, Any] = {"training": training, "fine_tuning": fine_tuning}
    config = EthanolConfig(
        seeds=tuple(_whole(item) for item in _items("--seeds", seeds)),
        labels=_choice("--labels", labels, ("rmd17", "md17")),  # type: ignore[arg-type]
        recipes=_recipes(recipes),
        overrides=tuple(overrides or ()),
        rotations=rotations,
        rotated_structures=rotated_structures,
        runs=runs,
        results=results,
        threads=threads,
        **{key: value for key, value in given.items() if value is not None},
    )
    if data_root is not None:
        os.environ[DATA_VARIABLE] = str(data_root)
    experiment = Ethanol(config)
    if dry_run:
        _show_plan(experiment, wanted, as_json)
        return
    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    kinds = tuple(stage for stage in wanted if stage != "table")
    if kinds:
        experiment.run(kinds, say=say, progress=stage_progress)  # type: ignore[arg-type]
    if "table" not in wanted:
        return
    table = make_table(
        read_results(results), config.labels, config.recipes, command=experiment.command()
    )
    written = write_table(table, results, DOCUMENTS)
    if as_json:
        typer.echo(json.dumps(table.to_json(), ensure_ascii=False))
        return
    for path in written:
        Console(highlight=False, soft_wrap=True).print(f"written: {path}")


@app.command()
def drift(
    models: Annotated[
        str,
        typer.Option(help="With commas; MODEL+OUTER/N is r-RESPA, the outer force every N steps."),
    ] = "ethanol-fp32,ethanol-w8a8,ethanol-w4a8,ethanol-w4a8+ethanol-fp32/4",
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
    contenders = [contender(text) for text in _items("--models", models)]
    numbers = [_whole(item) for item in _items("--seeds", seeds)]
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
    seed: Annotated[int, typer.Option(help="Whose models; settled before looking at errors.")] = 0,
    variants: Annotated[str, typer.Option(help="Which of them, with commas.")] = "fp32,w8a8,w4a8",
    folder: Annotated[
        Path, typer.Option(help="Where to; by default the package's sources.")
    ] = Path("src/equibit/models/files"),
    runs: Runs = Path("runs/ethanol"),
    results: Results = Path("results/ethanol"),
) -> None:
    """Copy trained ethanol models into the package, with a card each."""
    from equibit.experiments.ethanol import Ethanol, EthanolConfig
    from equibit.experiments.shipping import ship as ship_models

    experiment = Ethanol(EthanolConfig(runs=runs, results=results))
    for path in ship_models(experiment, folder, seed=seed, variants=_items("--variants", variants)):
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


def _items(option: str, text: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise ConfigError(f"{option} names nothing; separate several with commas")
    return list(dict.fromkeys(items))


def _choice(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    items = _items(option, text)
    unknown = [item for item in items if item not in known]
    if unknown:
        raise ConfigError(f"{option}: no {unknown[0]!r}; known are {', '.join(known)}")
    return tuple(items)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"--seeds: {text!r} is no whole number") from error


def _recipes(text: str) -> tuple[str, ...]:
    from equibit.quantization.recipes import get_recipe

    return tuple(get_recipe(name).name for name in _items("--recipes", text))


def _show_plan(experiment: Ethanol, wanted: tuple[str, ...], as_json: bool) -> None:
    stages = [stage for stage in experiment.stages() if stage.kind in wanted]
    left = experiment.seconds_left(stages)
    if as_json:
        typer.echo(json.dumps([_plain(experiment, stage, left.get(stage)) for stage in stages]))
        return
    table = Table("stage", "model", "state", "time left", title="Ethanol table")
    for stage in stages:
        row = _plain(experiment, stage, left.get(stage))
        state = str(row["state"])
        time_left = "" if stage.done else _duration(left.get(stage))
        style = "dim" if stage.done else None
        table.add_row(stage.kind, stage.cell.name, state, time_left, style=style)
    console = Console()
    console.print(table)
    missing = [stage for stage in stages if not stage.done]
    console.print(
        f"{len(missing)} of {len(stages)} stages to do, about {_duration(sum(left.values()))} where "
        "there was something to estimate from"
    )


def _plain(experiment: Ethanol, stage: Stage, seconds: float | None) -> dict[str, Any]:
    if stage.done:
        state = "done"
    elif stage.kind == "evaluate":
        state = "missing"
    else:
        done, total = experiment.epochs(stage)
        state = f"{done}/{total} epochs" if done else "missing"
    return {
        "stage": stage.kind,
        "model": stage.cell.name,
        "state": state,
        "output": str(stage.output),
        "seconds_left": None if seconds is None else round(seconds),
    }


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
