"""The main job of the README: an FP32 network, its W4A8 form after a short QAT, and the report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from equibit.datasets import load_dataset
from equibit.evaluation.files import evaluate_model
from equibit.evaluation.report import write_report
from equibit.evaluation.summary import byte_count, number
from equibit.experiments.stages import (
    ProgressFactory,
    Say,
    is_finished,
    model_of,
    mute,
    no_bars,
    parent_changed,
    read_evaluation,
    write_evaluation,
)
from equibit.models import resolve_model
from equibit.training.config import RunConfig, StrictModel
from equibit.training.qat import QuantizationConfig, quantize


class DemoConfig(StrictModel):
    """What the demonstration does; small enough for a few minutes on two cores.

    Attributes:
        parent: the FP32 network.
        dataset: labelled structures with train, validation and test splits.
        recipe: how the network is quantised.
        epochs, scalar_epochs: of the fine-tuning, and how many of them round scalars only.
        rotations, rotated_structures: of the symmetry test.
        output: folder of the run.
        seed: of everything random.
        threads: CPU threads.
    """

    parent: str = "ethanol-fp32"
    dataset: str = "ethanol-pbe"
    recipe: str = "w4a8"
    epochs: int = Field(default=10, ge=0)
    scalar_epochs: int = Field(default=2, ge=0)
    rotations: int = Field(default=32, ge=1)
    rotated_structures: int = Field(default=20, ge=1)
    output: Path = Path("runs/demo")
    seed: int = 0
    threads: int = Field(default=1, ge=1)

    @property
    def name(self) -> str:
        """Of the quantised model."""
        return f"{Path(self.dataset).stem}-{self.recipe}"


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration made.

    Attributes:
        model: the quantised model.
        evaluation: its figures, JSON.
        report: the HTML page.
        summary: five lines for the terminal.
        seconds: wall time of this session.
    """

    model: Path
    evaluation: Path
    report: Path
    summary: tuple[str, ...]
    seconds: float


def run_demo(
    config: DemoConfig,
    *,
    resume: bool = True,
    say: Say = mute,
    progress: ProgressFactory = no_bars,
) -> DemoResult:
    """Quantise, judge and report; steps that are done already are not repeated.

    Args:
        config: what to do.
        resume: False starts afresh.
        say: told what begins.
        progress: opens the bars of the evaluation; the training draws its own.

    Raises:
        ModelError, DatasetError: the parent or the data are not there.
        ConfigError: the folder holds a run of another configuration.
    """
    started = time.monotonic()
    resolve_model(config.parent)
    data = load_dataset(config.dataset)
    train, validation, test = (data.subset(s) for s in ("train", "validation", "test"))
    settings = QuantizationConfig(
        parent=config.parent,
        recipe=config.recipe,
        epochs=config.epochs,
        scalar_epochs=config.scalar_epochs,
        run=RunConfig(
            output=config.output / config.name,
            seed=config.seed,
            threads=config.threads,
            validate_every=1,
            checkpoint_every=1,
        ),
    )
    model = model_of(settings)
    if resume and is_finished(settings):
        say(f"1/2 {config.name} is trained: {model}")
    else:
        say(
            f"1/2 quantise {config.parent} to {config.recipe}: {config.epochs} epochs on "
            f"{len(train)} structures of {config.dataset}"
        )
        record = {"dataset": data.name, "labels": data.labels, "split": None}
        resume = resume and not parent_changed(settings)
        quantize(settings, train, validation, data=record, resume=resume)
    report, evaluation = config.output / "report.html", config.output / "evaluation.json"
    plain = read_evaluation(evaluation, model) if resume and report.is_file() else None
    if plain is None:
        say(
            f"2/2 judge it beside its parent on {len(test)} test structures, "
            f"{min(config.rotated_structures, len(test))} of them in {config.rotations} orientations"
        )
        with progress() as report_progress:
            result = evaluate_model(
                model,
                test,
                parent=config.parent,
                n_rotations=config.rotations,
                rotated_structures=config.rotated_structures,
                time_calls=False,
                seed=config.seed,
                dataset=config.dataset,
                subset="test",
                progress=report_progress,
            )
        write_report(result, report)
        plain = write_evaluation(evaluation, result, model)
    else:
        say(f"2/2 it is judged: {evaluation}")
    return DemoResult(model, evaluation, report, summary_lines(plain), time.monotonic() - started)


def summary_lines(evaluation: dict[str, Any]) -> tuple[str, ...]:
    """An evaluation with a parent in five lines."""
    model, parent = evaluation["model"], evaluation["parent"]
    errors, reference = model["errors"], parent["errors"]
    floors, size = evaluation["floors"], evaluation["size"]
    single, double = evaluation["equivariance"]["forces"], floors["FP64 model"]["forces"]
    floor = floors["FP32 parent"]["forces"]
    files = f"{byte_count(size['fp32_file_bytes'])} → {byte_count(size['file_bytes'])}"
    return (
        f"energy MAE    {number(errors['energy']['mae'])} meV; "
        f"FP32 parent {number(reference['energy']['mae'])}",
        f"force MAE     {number(errors['forces']['mae'])} meV/Å; "
        f"FP32 parent {number(reference['forces']['mae'])}",
        f"LEE, float32  mean {number(single['mean'])}, median {number(single['median'])} meV/Å; "
        f"FP32 parent mean {number(floor['mean'])}",
        f"LEE, float64  mean {number(double['mean'])} meV/Å",
        f"size          quantised layers {number(size['quantized_ratio'])}× smaller, whole file "
        f"{number(size['file_ratio'])}× ({files})",
    )
