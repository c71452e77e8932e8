"""``equibit data``: list, fetch, inspect, convert and generate labelled structures."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from equibit.cli.generate import app as generate_app
from equibit.structures.errors import DatasetError

app = typer.Typer(no_args_is_help=True)

DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", help="Folder with data sets; EQUIBIT_DATA and the cache follow."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
UnitsOption = Annotated[
    str | None,
    typer.Option(help="Units of a file that does not state them: energy,length, as in kcal/mol,Å."),
]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", help="Format of a file whose suffix does not tell: extxyz, npz, …"),
]
EnergyKey = Annotated[
    str | None, typer.Option(help="Name of the energy in the file, where it is another one.")
]
ForcesKey = Annotated[
    str | None, typer.Option(help="Name of the forces in the file, where it is another one.")
]
StressKey = Annotated[
    str | None, typer.Option(help="Name of the stress in the file, where it is another one.")
]


@app.command("list")
def list_datasets(data_root: DataRoot = None, as_json: AsJson = False) -> None:
    """List the data sets that have a name, and which of them are on this machine."""
    from equibit.datasets.catalog import ENTRIES
    from equibit.datasets.locations import find

    rows: list[dict[str, Any]] = []
    for entry in ENTRIES.values():
        path = find(entry, root=data_root)
        rows.append(
            {
                "name": entry.name,
                "labels": entry.labels,
                "level_of_theory": entry.level_of_theory,
                "file": None if path is None else str(path),
                "licence": entry.licence,
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    table = Table("name", "labels", "licence", "here", box=None)
    for row in rows:
        style = None if row["file"] else "dim"
        here = "yes" if row["file"] else "no"
        table.add_row(row["name"], row["level_of_theory"], row["licence"], here, style=style)
    console = Console()
    console.print(table)
    console.print("`equibit data fetch NAME` downloads what is not here; --json shows the files.")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Name of a data set: rmd17/ethanol, qm9.")],
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Download a public data set into the cache, unless it is on this machine.

    An interrupted download goes on when called again; size and checksum are verified.
    """
    from equibit.datasets.catalog import find_entry
    from equibit.datasets.locations import locate

    path = locate(find_entry(name), root=data_root)
    if as_json:
        typer.echo(json.dumps({"name": name, "file": str(path)}))
        return
    Console(highlight=False, soft_wrap=True).print(f"{name} is at {path}")


@app.command()
def inspect(
    data: Annotated[str, typer.Argument(help="Name of a data set, or a file with structures.")],
    data_root: DataRoot = None,
    split: Annotated[int, typer.Option(help="Number of the official split.")] = 1,
    units: UnitsOption = None,
    format: FormatOption = None,  # noqa: A002
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the distributions into this file: .png, .svg or .pdf."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count, measure and check a data set: elements, ranges, duplicates, outliers, net forces."""
    from equibit.datasets import load_dataset
    from equibit.datasets.inspection import draw_report, inspect_dataset, measure, report_table

    if plot is not None:
        _check_plot(plot)
    dataset = load_dataset(
        data,
        root=data_root,
        split=split,
        units=units,
        format=format,
        keys=_keys(energy_key, forces_key, stress_key),
    )
    measured = measure(dataset.structures)
    report = inspect_dataset(dataset, measured)
    if plot is not None:
        draw_report(report, measured, plot)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
        return
    console = Console()
    console.print(report_table(report))
    if plot is not None:
        console.print(f"picture: {plot}", highlight=False, soft_wrap=True)


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(help="File with structures, or the name of a data set (all its splits)."),
    ],
    output: Annotated[
        Path, typer.Argument(help="File to write: .xyz, .extxyz, .traj, .db or .npz.")
    ],
    data_root: DataRoot = None,
    units: UnitsOption = None,
    format: FormatOption = None,  # noqa: A002
    output_format: Annotated[
        str | None, typer.Option(help="Format to write whatever the suffix: extxyz, npz, …")
    ] = None,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert between formats; the result is in Å, eV and eV/Å.

    Files are streamed, so they may be larger than memory (npz is not). A named data set written as
    npz keeps its splits.
    """
    from equibit.datasets import load_dataset
    from equibit.datasets.catalog import ENTRIES
    from equibit.structures.formats import iter_structures, write_structures
    from equibit.structures.formats.api import checked_output_format
    from equibit.structures.formats.npz import write_npz
    from equibit.structures.units import parse_units

    kind = checked_output_format(output, output_format)
    if output.exists() and not force:
        raise DatasetError(f"{output} exists; choose another name or add --force")
    keys = _keys(energy_key, forces_key, stress_key)
    counter = _Counter()
    if source in ENTRIES:
        dataset = load_dataset(source, root=data_root, units=units, format=format, keys=keys)
        if kind == "npz":
            meta = {"name": dataset.name, "level": dataset.level_of_theory}
            structures = counter.count(dataset.structures)
            write_npz(output, structures, splits=dataset.splits, meta=meta)
        else:
            write_structures(output, counter.count(dataset.structures), format=kind)
    else:
        stated = None if units is None else parse_units(units)
        read = iter_structures(source, format=format, units=stated, keys=keys)
        write_structures(output, counter.count(read), format=kind)
    if as_json:
        typer.echo(json.dumps({"output": str(output), "structures": counter.total}))
        return
    Console(highlight=False, soft_wrap=True).print(
        f"{counter.total:,} structures written to {output}"
    )


class _Counter:
    """Counts what passes through."""

    def __init__(self) -> None:
        self.total = 0

    def count(self, items: Any) -> Any:
        for item in items:
            self.total += 1
            yield item


def _keys(energy: str | None, forces: str | None, stress: str | None) -> Any:
    from equibit.structures.formats import LabelKeys

    if energy is None and forces is None and stress is None:
        return None
    return LabelKeys(energy=energy, forces=forces, stress=stress)


def _check_plot(plot: Path) -> None:
    """Refuse before minutes of work what could not be written afterwards."""
    if plot.suffix not in (".png", ".svg", ".pdf"):
        raise DatasetError(f"cannot draw {plot}: the name must end in .png, .svg or .pdf")
    importlib.import_module("matplotlib")


app.registered_commands += generate_app.registered_commands
