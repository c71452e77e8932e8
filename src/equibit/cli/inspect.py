"""``equibit inspect``: what a model file holds, without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from equibit.cli.tables import key_value_table

if TYPE_CHECKING:
    from equibit.engine import NativePotential
    from equibit.evaluation.description import ModelDescription
    from equibit.evaluation.size import PartSize

app = typer.Typer()


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Shipped model or path to a model file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say what a model file holds: network, recipe, layers, bits, bytes and how it was made.

    The file's checksum is verified first; PyTorch is not needed.
    """
    from equibit.evaluation.description import describe_model
    from equibit.models import resolve_model

    description = describe_model(resolve_model(model))
    if as_json:
        record = description.to_json() | {"engine": _engine_record(_engine_of(description))}
        typer.echo(json.dumps(record, ensure_ascii=False, allow_nan=False))
        return
    console = Console(highlight=False)
    console.print(key_value_table(description.name, _overview(description)))
    console.print("\n[bold]Recipe[/bold]", description.recipe)
    for sentence in description.recipe_words:
        console.print(f"  {sentence}")
    console.print()
    if description.layers:
        console.print(_layer_table(description))
    console.print(_size_table(description))
    _print_arithmetic(console, _engine_of(description))
    console.print(key_value_table("Training", dict(_flat(description.training))))


def _engine_of(description: ModelDescription) -> NativePotential | str:
    """The model in the engine, or why it does not run there."""
    from equibit import engine
    from equibit.structures.errors import EquibitError

    try:
        return engine.load(description.file)
    except EquibitError as error:
        return str(error)


def _engine_record(engine: NativePotential | str) -> dict[str, Any]:
    if isinstance(engine, str):
        return {"runs": False, "reason": engine}
    rows = [
        dict(zip(("part", "energies", "forces"), row, strict=True)) for row in engine.arithmetic
    ]
    return {"runs": True, "kernels": engine.kernels, "arithmetic": rows}


def _print_arithmetic(console: Console, engine: NativePotential | str) -> None:
    """What runs in integers and what in floats, as the compiled engine itself says it."""
    if isinstance(engine, str):
        console.print(f"[bold]Engine[/bold] does not run it: {engine}", soft_wrap=True)
        return
    table = Table(
        title=f"In the engine on this processor ({engine.kernels})",
        title_justify="left",
        header_style="dim",
    )
    for column in ("part", "energies", "forces"):
        table.add_column(column)
    rows: dict[tuple[str, str, str], int] = {}
    for name, forward, reverse in engine.arithmetic:
        row = (_anywhere(name), forward, reverse)
        rows[row] = rows.get(row, 0) + 1
    for (name, forward, reverse), count in rows.items():
        table.add_row(_times(name, count), forward, reverse)
    console.print(table)


def _overview(description: ModelDescription) -> dict[str, object]:
    settings = ", ".join(f"{k} {_short(v)}" for k, v in description.hyperparameters.items())
    units = description.units
    return {
        "file": description.file,
        "checksum": f"verified; SHA-256 of the file {description.sha256[:16]}…",
        "format": f"model, version {description.version}",
        "architecture": description.architecture,
        "hyper-parameters": settings.replace("_", " "),
        "elements": ", ".join(description.elements),
        "cutoff": f"{description.cutoff:g} Å",
        "units": f"{units.get('energy', '?')}, {units.get('length', '?')}",
        "numbers": f"{description.n_weights:,}",
        "card": description.card or "none beside the file",
    }


def _layer_table(description: ModelDescription) -> Table:
    """One row for layers that differ in their place only."""
    table = Table(title="Quantised layers", title_justify="left", header_style="dim")
    table.add_column("layer", no_wrap=True)
    table.add_column("weight")
    table.add_column("input")
    table.add_column("bytes", justify="right")
    rows: dict[tuple[str, ...], list[int]] = {}
    for layer in description.layers:
        shape = " × ".join(map(str, layer.shape))
        row = (
            _anywhere(layer.name),
            f"{shape}, {layer.bits} bits {layer.steps}",
            layer.input,
        )
        rows.setdefault(row, []).append(layer.bytes)
    for (name, *rest), sizes in rows.items():
        table.add_row(_times(name, len(sizes)), *rest, f"{sum(sizes):,}")
    return table


def _anywhere(layer: str) -> str:
    """A layer's name without its place among the network's layers."""
    return re.sub(r"\.\d+\.(?=\D)", ".*.", layer)


def _times(name: str, count: int) -> str:
    return f"{name} ({count}×)" if count > 1 else name


def _size_table(description: ModelDescription) -> Table:
    size = description.size
    quantized = [part for part in size.parts if part.quantized]
    rest = [part for part in size.parts if not part.quantized]
    table = Table(title="Size", title_justify="left", header_style="dim")
    for column in ("part", "bits", "numbers", "bytes", "in FP32", "ratio"):
        table.add_column(column, justify="left" if column == "part" else "right")

    def row(label: str, bits: str, numbers: int | None, stored: int, fp32: int) -> None:
        counted = "" if numbers is None else f"{numbers:,}"
        ratio = f"{fp32 / stored:.2f}×" if stored else "–"
        table.add_row(label, bits, counted, f"{stored:,}", f"{fp32:,}", ratio)

    if quantized:
        bits = "/".join(str(b) for b in sorted({part.bits for part in quantized}))
        row(
            f"quantised layers ({len(quantized)})",
            bits,
            sum(part.n_weights for part in quantized),
            sum(part.bytes for part in quantized),
            sum(part.fp32_bytes for part in quantized),
        )
    kinds: dict[tuple[str, int], list[PartSize]] = {}
    for part in rest:
        if part.bytes:
            width = round(8 * part.bytes / max(part.n_weights, 1))  # as stored
            kinds.setdefault((_anywhere(part.name), width), []).append(part)
    for (name, width), parts in sorted(
        kinds.items(), key=lambda kind: -sum(p.bytes for p in kind[1])
    ):
        row(
            _times(name, len(parts)),
            str(width),
            sum(part.n_weights for part in parts),
            sum(part.bytes for part in parts),
            sum(part.fp32_bytes for part in parts),
        )
    row("whole file, header included", "", None, size.file_bytes, size.fp32_file_bytes)
    return table


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """A training record as lines; of a parent, what it was made from but not its own figures."""
    items: list[tuple[str, object]] = []
    for key, value in record.items():
        if key == "parent" and isinstance(value, Mapping):
            items.append((f"{prefix}parent", value.get("name", "–")))
            made = value.get("training", {})
            own = {k: v for k, v in made.items() if k not in ("metrics", "versions")}
            items += _flat(own, f"{prefix}parent: ")
        elif isinstance(value, Mapping):
            items += _flat(value, f"{prefix}{key}: ")
        else:
            items.append((f"{prefix}{key}", "–" if value is None else value))
    return items


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
