"""``equibit evaluate``: accuracy, symmetry, conservation, size and speed of a model."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from equibit.structures.errors import DatasetError, EquibitError

if TYPE_CHECKING:
    from equibit.structures.structure import Structure

app = typer.Typer()

ALL = "all"


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Shipped model or path to a model file.")],
    data: Annotated[
        str, typer.Argument(help="Data set (rmd17/ethanol, ethanol-pbe) or a file of your own.")
    ],
    parent: Annotated[
        str | None,
        typer.Option(
            help="FP32 model it was quantised from; judged beside it, and its LEE a floor."
        ),
    ] = None,
    split: Annotated[int, typer.Option(min=1, help="Official split of the data set.")] = 1,
    subset: Annotated[
        str, typer.Option(help="train, validation, test, or all structures of the file.")
    ] = "test",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only so many structures, from the first.")
    ] = None,
    rotations: Annotated[
        int, typer.Option(min=0, help="Random rotations per structure; 0 leaves symmetry out.")
    ] = 32,
    rotated_structures: Annotated[
        int, typer.Option(min=1, help="Rotate at most so many structures, chosen by the seed.")
    ] = 100,
    improper: Annotated[
        bool, typer.Option("--improper", help="Draw reflections as well as rotations.")
    ] = False,
    latency: Annotated[bool, typer.Option(help="Measure the time per structure.")] = True,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for evaluation.json and report.html."),
    ] = None,
    report: Annotated[bool, typer.Option(help="Write the HTML report.")] = True,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder with data sets (else EQUIBIT_DATA, then the cache).")
    ] = None,
    units: Annotated[
        str | None, typer.Option(help="Units of your own file where it does not state them.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per call.")] = 32,
    dtype: Annotated[
        str | None, typer.Option(help="Arithmetic of the model: float32 or float64.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of rotations and of random splits.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would happen, stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Judge a model on labelled structures and write evaluation.json and report.html.

    Errors are in meV, meV/atom and meV/Å. Symmetry is measured by random rotations, beside what the
    rounding of FP32 and FP64 arithmetic alone costs.
    """
    from equibit.cli.options import checked_dtype
    from equibit.cli.progress import stage_progress
    from equibit.evaluation.files import evaluate_model
    from equibit.evaluation.report import write_report
    from equibit.evaluation.tables import evaluation_tables
    from equibit.models import resolve_model
    from equibit.storage import atomic_text

    if report and importlib.util.find_spec("jinja2") is None:
        raise EquibitError(
            'the report needs jinja2: pip install "equibit[report]", or pass --no-report'
        )
    checked_dtype(dtype)
    model_file = resolve_model(model)
    if parent is not None:
        resolve_model(parent)
    structures = _structures(data, subset, split, limit, data_root, units, seed)
    folder = output or Path(f"evaluation-{_slug(model)}-{_slug(data)}")
    console = Console(highlight=False)
    if dry_run:
        console.print(
            f"would judge {model_file} on {len(structures)} structures of {data}, rotate "
            f"{min(len(structures), rotated_structures) if rotations else 0} of them {rotations} "
            f"times, and write to {folder}",
            soft_wrap=True,
        )
        return
    folder.mkdir(parents=True, exist_ok=True)

    with stage_progress() as progress:
        result = evaluate_model(
            model,
            structures,
            parent=parent,
            dtype=dtype,
            n_rotations=rotations,
            improper=improper,
            rotated_structures=rotated_structures,
            time_calls=latency,
            batch_size=batch_size,
            seed=seed,
            dataset=data,
            split=str(split) if _has_official_splits(data) else None,
            subset=subset,
            progress=progress,
        )
    plain = result.to_json()
    with atomic_text(folder / "evaluation.json") as file:
        json.dump(plain, file, indent=1, allow_nan=False)
    if report:
        write_report(result, folder / "report.html")
    if as_json:
        typer.echo(json.dumps(plain, allow_nan=False))
        return
    for table in evaluation_tables(result):
        console.print(table)
    console.print(f"written: {folder / 'evaluation.json'}", soft_wrap=True)
    if report:
        console.print(f"written: {folder / 'report.html'}", soft_wrap=True)


def _structures(
    data: str,
    subset: str,
    split: int,
    limit: int | None,
    root: Path | None,
    units: str | None,
    seed: int,
) -> list[Structure]:
    from equibit.datasets import load_dataset
    from equibit.structures.units import parse_units

    dataset = load_dataset(
        data, root=root, split=split, seed=seed, units=None if units is None else parse_units(units)
    )
    structures = list(dataset.structures) if subset == ALL else dataset.subset(subset)
    if not structures:
        raise DatasetError(
            f"{data} has no structures in its {subset} subset; pass --subset {ALL} to use all "
            f"{len(dataset)}"
        )
    return structures[:limit]


def _has_official_splits(data: str) -> bool:
    return data.partition("/")[0] in ("rmd17", "md17")


def _slug(name: str) -> str:
    """A name fit for a folder: the file's stem, or the data set's name with dashes."""
    text = Path(name).stem if Path(name).exists() else name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "structures"
