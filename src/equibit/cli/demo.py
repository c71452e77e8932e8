"""``equibit demo``: from the shipped FP32 network and data to a W4A8 model and its report."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from equibit.structures.errors import EquibitError

app = typer.Typer()


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")] = Path(
        "runs/demo"
    ),
    parent: Annotated[
        str, typer.Option(help="FP32 network to quantise: shipped name or file.")
    ] = "ethanol-fp32",
    data: Annotated[
        str, typer.Option("--data", help="Labelled structures: a name or a file.")
    ] = "ethanol-pbe",
    recipe: Annotated[str, typer.Option(help="How to quantise it.")] = "w4a8",
    epochs: Annotated[int, typer.Option(min=0, help="Epochs of fine-tuning.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start afresh instead of going on where it stopped.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Quantise the shipped ethanol network, judge it beside its FP32 parent, write the report.

    Takes a few minutes; when interrupted, the same command goes on where it stopped.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise EquibitError('the report needs jinja2: pip install "equibit[report]"')
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("loading PyTorch …", style="dim")
    from equibit.cli.progress import stage_progress
    from equibit.experiments.demo import DemoConfig, run_demo

    config = DemoConfig(
        parent=parent,
        dataset=data,
        recipe=recipe,
        epochs=epochs,
        scalar_epochs=min(2, epochs),
        output=output,
        seed=seed,
        threads=threads,
    )
    result = run_demo(config, resume=not restart, say=console.print, progress=stage_progress)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "model": str(result.model),
                    "evaluation": str(result.evaluation),
                    "report": str(result.report),
                    "summary": result.summary,
                    "seconds": round(result.seconds, 1),
                },
                ensure_ascii=False,
            )
        )
        return
    out = Console(highlight=False, soft_wrap=True)
    out.print(f"\n[bold]{config.name}[/bold] on {config.dataset}, test structures")
    for line in result.summary:
        out.print(f"  {line}")
    out.print(f"\nmodel   {result.model}\nfigures {result.evaluation}")
    out.print(f"[bold]report  {result.report.resolve()}[/bold]")
    out.print(f"done in {result.seconds:.0f} s; next: equibit inspect {result.model}")
