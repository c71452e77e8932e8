"""``equibit models``: those that come with equibit, and how one's own get a card or join them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from equibit.structures.errors import ConfigError

app = typer.Typer(no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Name = Annotated[str, typer.Argument(help="Name of a shipped model, as `equibit models list` has.")]


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the shipped models: data, recipe, size, and errors on the test set of their data."""
    from equibit.models.zoo import zoo

    entries = zoo()
    if as_json:
        typer.echo(json.dumps([entry.to_json() for entry in entries], ensure_ascii=False))
        return
    table = Table(header_style="dim", box=None)
    for column, justify in (
        ("name", "left"),
        ("recipe", "left"),
        ("data", "left"),
        ("kB", "right"),
        ("energy, meV", "right"),
        ("forces, meV/Å", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for entry in entries:
        table.add_row(
            entry.name,
            entry.recipe,
            entry.dataset or "–",
            f"{entry.bytes / 1000:.0f}",
            _figure(entry.figures, "energy_mae_mev"),
            _figure(entry.figures, "forces_mae_mev_a"),
        )
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print("MAE on test structures; `equibit models show NAME` prints a model's card.")


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Print the card of a shipped model: data, split, seed, command, figures, limits, licence."""
    from rich.markdown import Markdown

    from equibit.models.zoo import zoo_entry

    entry = zoo_entry(name)
    if as_json:
        typer.echo(json.dumps(entry.to_json(), ensure_ascii=False))
        return
    console = Console(highlight=False)
    if entry.card is None:
        console.print(f"{name} has no card; `equibit inspect {name}` says what the file holds.")
        return
    console.print(Markdown(Path(entry.card).read_text(encoding="utf-8")))


@app.command()
def get(
    name: Name,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder, or file to write, *.safetensors.")
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """Copy a shipped model, with its card, to where you want it."""
    from equibit.models.zoo import copy_model

    written = [str(path) for path in copy_model(name, output)]
    if as_json:
        typer.echo(json.dumps(written))
        return
    for path in written:
        Console(highlight=False, soft_wrap=True).print(f"written: {path}")


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
    from equibit.cli.stages import items
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


def _figure(figures: object, key: str) -> str:
    from equibit.evaluation.summary import number

    value = figures.get(key) if isinstance(figures, dict) else None
    return number(value) if isinstance(value, float) else "–"
