"""``equibit quantize``: from an FP32 network to a low-bit one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from equibit.cli.tables import key_value_table
from equibit.structures.errors import ConfigError

app = typer.Typer()


@app.command()
def quantize(
    parent: Annotated[str, typer.Argument(help="FP32 network: shipped name, file or run folder.")],
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            help="A named recipe, a JSON file of one, or fp32 for the control that is only trained.",
        ),
    ] = "w4a8",
    data: Annotated[
        str | None, typer.Option("--data", help="Labelled data: a name or a file.")
    ] = None,
    distill: Annotated[
        Path | None,
        typer.Option(
            "--distill",
            help="No data? A file with a starting structure: geometries are sampled by MD with the "
            "parent, which also labels them.",
        ),
    ] = None,
    labels: Annotated[
        str,
        typer.Option(
            help="Learn the labels of --data, or what the parent says of its geometries, which "
            "then need none: data or parent."
        ),
    ] = "data",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the run and its model.")
    ] = Path("runs/quantized"),
    epochs: Annotated[int, typer.Option(help="Epochs of fine-tuning; 0 only calibrates.")] = 20,
    scalar_epochs: Annotated[int, typer.Option(help="First epochs that round scalars only.")] = 5,
    lee_weight: Annotated[
        float, typer.Option(help="Weight of the equivariance loss; local frames need none.")
    ] = 0.0,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-4,
    split: Annotated[int, typer.Option(help="Official split, where the set has several.")] = 1,
    data_root: Annotated[Path | None, typer.Option(help="Folder that holds the data set.")] = None,
    units: Annotated[
        str | None, typer.Option(help="Units of an own file that does not state them.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Kelvin, for --distill.")] = 500.0,
    samples: Annotated[int, typer.Option(help="Structures to sample, for --distill.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and say what would happen.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start afresh, do not resume.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Quantise a network: calibrate, fine-tune branch by branch, freeze, write.

    An interrupted run goes on where it stopped when called again with the same options.
    """
    from equibit.structures.formats import read_structures
    from equibit.training.config import DataConfig, validated
    from equibit.training.distillation import DistillationConfig, distilled_structures
    from equibit.training.qat import QuantizationConfig, fitting
    from equibit.training.qat import quantize as run_quantize
    from equibit.training.run import load_parent, load_training_structures

    if (data is None) == (distill is None):
        raise ConfigError(
            "name either --data or --distill, so that there is something to learn from"
        )
    run = {"output": output, "seed": seed, "threads": threads}
    settings = validated(
        QuantizationConfig,
        {
            "parent": parent,
            "recipe": _recipe(recipe),
            "labels": labels,
            "epochs": epochs,
            "scalar_epochs": scalar_epochs,
            "lee_weight": lee_weight,
            "learning_rate": learning_rate,
            "run": {**run, "validate_every": 1, "checkpoint_every": 1},
        },
        source="the command",
    )
    if dry_run:
        load_parent(parent)
    console = Console(stderr=as_json)
    if distill is not None:
        sampling = validated(
            DistillationConfig,
            {"start": distill, "temperature": temperature, "samples": samples, "seed": seed},
            source="the command",
        )
        if dry_run:
            read_structures(distill)
            _show(settings, {"sampling": sampling.model_dump(mode="json")}, as_json)
            return
        train, validation, record = distilled_structures(parent, sampling, output)
    else:
        train, validation, record = load_training_structures(
            DataConfig(dataset=str(data), root=data_root, split=split, units=units)
        )
        settings = fitting(settings, train)
        if settings.loss.energies_alone:
            console.print(
                f"{data} has no labels of forces: energies alone are learned", soft_wrap=True
            )
    if dry_run:
        _show(settings, {**record, "train": len(train), "validation": len(validation)}, as_json)
        return
    result = run_quantize(settings, train, validation, data=record, resume=not restart)
    figures = {
        "model": str(result.model),
        "kilobytes": round(result.model.stat().st_size / 1000, 1),
        **result.metrics,
        "seconds": round(result.seconds, 1),
    }
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        console.print(key_value_table("Quantised", figures))
        console.print(f"Next: equibit evaluate {result.model} {data or 'DATA'} --parent {parent}")


def _recipe(text: str) -> Any:
    from equibit.quantization.recipes import Recipe, get_recipe
    from equibit.training.qat import CONTROL

    if text == CONTROL:
        return text
    if Path(text).suffix == ".json":
        try:
            return Recipe.from_json(Path(text).read_text())
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"{text}: {reason}; name a recipe file") from error
    return get_recipe(text).name


def _show(settings: Any, data: dict[str, Any], as_json: bool) -> None:
    recipe = settings.resolved_recipe
    named = {"recipe": settings.recipe if recipe is None else recipe.name}
    tree = {**settings.model_dump(mode="json"), **named, "data": data}
    if as_json:
        typer.echo(json.dumps(tree))
    else:
        Console().print(key_value_table("This run would use", tree))
