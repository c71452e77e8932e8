"""``equibit export``: one checked model file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from equibit.cli.tables import key_value_table

app = typer.Typer()


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Shipped model, model file or run folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, *.safetensors.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the model in the file; unchanged if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a model as one file, checked and tried, for Python, the ASE calculator and C.

    Runs keep such files already; this one stands alone, at the current version of the format, under
    the name you give it. PyTorch is not needed.
    """
    from equibit.engine.export import export_model

    made = export_model(model, output, name=name)
    if as_json:
        typer.echo(json.dumps(made.to_json()))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        key_value_table(
            "Exported",
            {
                "file": made.file,
                "bytes": f"{made.bytes:,}",
                "sha-256": made.sha256,
                "name": made.name,
                "recipe": made.recipe,
                "format": f"model, version {made.version}",
                "engine": f"runs ({made.engine})" if made.runs_in_engine else made.engine,
            },
        )
    )
    console.print(f"What it holds: equibit inspect {made.file}")
