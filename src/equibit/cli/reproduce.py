"""``equibit reproduce``: every table and figure of the papers, each by its name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from equibit.cli.stages import run_experiment
from equibit.cli.tables import key_value_table
from equibit.experiments.registry import EXPERIMENTS, find_experiment
from equibit.structures.errors import ConfigError

app = typer.Typer()


@app.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="Of the experiment; without one, all are listed.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Settings of that experiment, e.g. recipes=w4a8,paper-w4a8"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Minutes: shows that everything works, no evidence.")
    ] = False,
    seeds: Annotated[str | None, typer.Option(help="Seeds, with commas.")] = None,
    stages: Annotated[
        str | None, typer.Option(help="What to do, with commas; everything without.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of checkpoints and models.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Folder of figures; the report is written beside it.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder with data sets (else EQUIBIT_DATA, then the cache).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what is done and what is missing, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make a table or figure of the papers again, with our networks beside theirs.

    Stages that are done are skipped and interrupted ones go on, so seeds and stages can be taken one
    by one; parents are shared between experiments. The report is results/NAME.json, .md and .png.
    """
    if name is None:
        if as_json:
            typer.echo(json.dumps({key: entry.summary for key, entry in EXPERIMENTS.items()}))
            return
        listed = {key: entry.summary for key, entry in EXPERIMENTS.items()}
        Console().print(key_value_table("Experiments", listed))
        return
    from equibit.datasets.locations import DATA_VARIABLE

    experiment_type = find_experiment(name)
    given: dict[str, Any] = {
        "seeds": seeds, "threads": threads, "runs": runs, "results": results
    }  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None}
    if data_root is not None:
        os.environ[DATA_VARIABLE] = str(data_root)
    experiment = experiment_type.configured(quick=quick, **given, **_settings(settings or []))
    run_experiment(experiment, stages, dry_run=dry_run, as_json=as_json)


def _settings(items: list[str]) -> dict[str, str]:
    settings = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise ConfigError(f"setting {item!r}: write key=value")
        settings[key] = value
    return settings
