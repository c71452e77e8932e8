"""Experiments on the terminal: what is done, what is missing, and the run itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from equibit.cli.progress import stage_progress
from equibit.structures.errors import ConfigError

if TYPE_CHECKING:
    from equibit.experiments.experiment import Experiment
    from equibit.experiments.stages import Stage


def run_experiment(
    experiment: Experiment[Any], stages: str | None, *, dry_run: bool, as_json: bool
) -> None:
    """Run an experiment's stages, or list them, and print what was written.

    Raises:
        ConfigError: an unknown kind of stage, or a folder that holds something else.
    """
    kinds = None if stages is None else items("--stages", stages)
    if dry_run:
        show_plan(experiment.name, experiment.selected(kinds), as_json)
        return
    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    written = experiment.run(kinds, say=say, progress=stage_progress)
    if as_json:
        typer.echo(json.dumps(experiment.report().to_json(), ensure_ascii=False))
        return
    for path in written:
        Console(highlight=False, soft_wrap=True).print(f"written: {path}")


def show_plan(name: str, stages: Sequence[Stage], as_json: bool) -> None:
    """What is done of these stages, what is missing and how long that takes."""
    from equibit.experiments.stages import seconds_left

    left = seconds_left(stages)
    if as_json:
        typer.echo(json.dumps([_plain(stage, left.get(stage)) for stage in stages]))
        return
    table = Table("stage", "of", "state", "time left", title=f"{name}: stages")
    missing = 0
    for stage in stages:
        state = _state(stage)
        done = state == "done"
        missing += not done
        time_left = "" if done else _duration(left.get(stage))
        table.add_row(stage.kind, stage.name, state, time_left, style="dim" if done else None)
    console = Console()
    console.print(table)
    console.print(
        f"{missing} of {len(stages)} stages to do, about {_duration(sum(left.values()))} where "
        "there was something to estimate from"
    )


def items(option: str, text: str) -> list[str]:
    """What an option lists, each once.

    Raises:
        ConfigError: nothing.
    """
    found = [item.strip() for item in text.split(",") if item.strip()]
    if not found:
        raise ConfigError(f"{option} names nothing; separate several with commas")
    return list(dict.fromkeys(found))


def _plain(stage: Stage, seconds: float | None) -> dict[str, Any]:
    return {
        "stage": stage.kind,
        "model": stage.name,
        "state": _state(stage),
        "output": str(stage.output),
        "seconds_left": None if seconds is None else round(seconds),
    }


def _state(stage: Stage) -> str:
    if stage.done:
        return "done"
    done, total = stage.steps()
    return f"{done}/{total}" if done else "missing"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
