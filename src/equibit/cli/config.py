"""``equibit config``: examples and the schema of run descriptions."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from equibit.structures.errors import ConfigError

app = typer.Typer(no_args_is_help=True)


def _examples() -> dict[str, str]:
    folder = files("equibit.training") / "examples"
    return {
        entry.name.removesuffix(".yaml"): entry.read_text()
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    }


@app.command()
def schema() -> None:
    """Print the JSON schema of a run description, for editors and checks."""
    from equibit.training.config import config_schema

    typer.echo(config_schema())


@app.command()
def example(
    name: Annotated[str, typer.Argument(help="Which one; without a name, list them.")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it here.")] = None,
) -> None:
    """Print (or write) a ready run description to start from."""
    from equibit.storage.atomic import atomic_text

    examples = _examples()
    if not name:
        typer.echo("\n".join(sorted(examples)))
        return
    if name not in examples:
        raise ConfigError(f"there is no example {name}; known: {', '.join(sorted(examples))}")
    if output is None:
        typer.echo(examples[name], nl=False)
        return
    if output.exists():
        raise ConfigError(f"{output} exists; choose another name or remove it")
    with atomic_text(output) as file:
        file.write(examples[name])
    typer.echo(f"wrote {output}; run: equibit train {output}")
