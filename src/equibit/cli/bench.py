"""``equibit bench``: the engine beside PyTorch and its peers, timed in turns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer()


@app.command()
def bench(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="JSON to write; the picture lies beside it.")
    ] = Path("results/bench.json"),
    systems: Annotated[
        str, typer.Option(help="With commas: ethanol, aspirin, water-192, water-999.")
    ] = "ethanol,aspirin,water-192,water-999",
    sizes: Annotated[
        str, typer.Option(help="Atoms of water in the cost curve, with commas; empty for none.")
    ] = "24,81,192,648,999,3000,9999",
    recipes: Annotated[
        str, typer.Option(help="Low-bit forms beside float32, with commas.")
    ] = "w8a8,w4a8,w8a16,w4a16,bf16",
    kernels: Annotated[
        str | None, typer.Option(help="Instruction sets, with commas; the fastest if left out.")
    ] = None,
    irreps: Annotated[str, typer.Option(help="Channels of the network.")] = "64x0e+64x1o",
    layers: Annotated[int, typer.Option(help="Of the network.")] = 6,
    threads: Annotated[int, typer.Option(help="CPU threads of each contender.")] = 1,
    more_threads: Annotated[
        int, typer.Option(help="Threads to set beside one, by wall time; 1 for none.")
    ] = 2,
    rounds: Annotated[int, typer.Option(help="Turns.")] = 15,
    torch: Annotated[
        bool, typer.Option(help="Time PyTorch, torch.compile, ONNX Runtime and torchao, too.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Time everything that evaluates the same network, interleaved; print medians and ratios.

    ONNX Runtime and torchao take part where they are installed; the extra "peers" brings them. Quote
    ratios of one run: times drift with the machine.
    """
    from equibit.cli.progress import stage_progress
    from equibit.experiments.bench import BenchSettings, run_bench

    settings = BenchSettings(
        irreps=irreps,
        layers=layers,
        recipes=_items(recipes),
        systems=_items(systems),
        sizes=tuple(int(size) for size in _items(sizes)),
        kernels=None if kernels is None else _items(kernels),
        threads=threads,
        more_threads=more_threads,
        rounds=rounds,
        torch=torch,
    )
    with stage_progress() as progress:
        record = run_bench(settings, output, progress=progress)
    if as_json:
        typer.echo(json.dumps(record))
        return
    console = Console(highlight=False)
    for name, contenders in record["systems"].items():
        console.print(_table(name, contenders))
    for name, reasons in record["left_out"].items():
        for contender, reason in reasons.items():
            console.print(f"{name}: {contender} left out: {reason}", style="yellow")
    for name, stages in record["stages"].items():
        console.print(_stages_table(name, stages))
    for contender, roofline in record["roofline"].items():
        console.print(
            f"{contender}: ethanol's energy takes no less than {roofline['least_microseconds']:.3g} µs "
            f"at {roofline['float_gigaflops']:.3g} GFLOP/s in float32; reached {roofline['share']:.0%}"
        )
    for point in record["cost_against_atoms"]:
        costs = ", ".join(f"{r} {t:.3g}" for r, t in point["microseconds_per_atom"].items())
        console.print(f"{point['atoms']:>6} atoms, µs per atom and step: {costs}")
    for name, recipes_timed in record["threads"].items():
        console.print(_threads_table(name, recipes_timed))
    for name, column in record["peak_megabytes"].items():
        used = ", ".join(f"{contender} {megabytes:g}" for contender, megabytes in column.items())
        console.print(f"{name}, peak memory of the process, MB: {used}")
    console.print(f"written: {output}")


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _threads_table(title: str, timed: Mapping[str, Any]) -> Table:
    """Wall times of one thread and of more."""
    counts = list(next(iter(timed.values()))["microseconds"])
    table = Table(title=f"{title}, wall time", title_justify="left", header_style="dim")
    table.add_column("engine")
    for count in counts:
        table.add_column(
            "1 thread, µs" if count == "1" else f"{count} threads, µs", justify="right"
        )
    table.add_column("1 thread /", justify="right")
    for recipe, row in timed.items():
        cells = [f"{row['microseconds'][count]:,.1f}" for count in counts]
        table.add_row(recipe, *cells, f"{row['one_over_this']:.3g}")
    return table


def _table(title: str, contenders: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", header_style="dim")
    for column in ("contender", "what", "µs", "eager /", "compiled /", "own FP32 /"):
        table.add_column(column, justify="left" if column in ("contender", "what") else "right")
    for contender, rows in contenders.items():
        for what, row in rows.items():
            ratios = [
                row[key] for key in ("eager_over_this", "compiled_over_this", "own_fp32_over_this")
            ]
            cells = ["–" if ratio is None else f"{ratio:.3g}" for ratio in ratios]
            table.add_row(contender, what, f"{row['microseconds']:,.1f}", *cells)
    return table


def _stages_table(title: str, models: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(title=f"{title}, µs by stage", title_justify="left", header_style="dim")
    table.add_column("model")
    for stage in next(iter(models.values())):
        table.add_column(stage, justify="right")
    for model, stages in models.items():
        table.add_row(model, *(f"{time:,.1f}" for time in stages.values()))
    return table
