"""``equibit train``: an FP32 network from a YAML configuration."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from equibit.cli.tables import key_value_table

app = typer.Typer()


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML run description (see `equibit config`).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Replacements, e.g. optimization.epochs=200 run.seed=1"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would happen, stop.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start afresh instead of going on where it stopped.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a network; an interrupted run goes on where it stopped when called again.

    Checkpoints, logs (CSV) and the final model.safetensors go to run.output. Under torchrun, or
    with run.devices above 1, processes share the work (DDP).
    """
    from equibit.training.config import load_config
    from equibit.training.fit import is_main_process
    from equibit.training.run import plan
    from equibit.training.run import train as run_training

    settings = load_config(config, overrides or [])
    console = Console()
    if dry_run:
        outlook = asdict(plan(settings))
        if as_json:
            typer.echo(json.dumps(outlook))
        else:
            console.print(key_value_table("This run would", outlook))
        return
    result = run_training(settings, resume=not restart)
    if not is_main_process():
        return
    figures = {
        "model": str(result.model),
        "best validation loss": result.best_validation,
        **result.metrics,
        "seconds": round(result.seconds, 1),
    }
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        console.print(key_value_table("Trained", figures))
        console.print(f"Next: equibit evaluate {result.model} {settings.data.dataset}")
