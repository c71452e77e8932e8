"""The ethanol table: FP32, control and low-bit networks over seeds, on rMD17 and MD17 labels.

Every cell is a stage that is skipped once its output exists, so the table can be made piece by
piece, by several sessions. Figures on rMD17 and on MD17 labels never share a column.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, ValidationError

from equibit.datasets import load_dataset
from equibit.evaluation.files import evaluate_model
from equibit.experiments.stages import (
    ProgressFactory,
    Say,
    is_finished,
    mute,
    no_bars,
    parent_changed,
    read_evaluation,
    write_evaluation,
)
from equibit.experiments.throughput import eager_step_seconds
from equibit.structures import Structure
from equibit.structures.errors import ConfigError
from equibit.training.config import StrictModel, TrainingConfig, load_config
from equibit.training.qat import CONTROL, QuantizationConfig, quantize
from equibit.training.run import MODEL, load_training_structures, train

Labels = Literal["rmd17", "md17"]
Kind = Literal["train", "quantize", "evaluate"]

CONFIGS = Path(str(files("equibit.experiments") / "configs"))
PARENT = "fp32"
CONTROL_NAME = "control"
MIN_EPOCHS = 3  # of a run under way, before its pace says anything


class EthanolConfig(StrictModel):
    """Which cells of the table, and how.

    Attributes:
        seeds: one row of networks each.
        labels: ``rmd17``, ``md17`` or both; the same network is trained on either.
        recipes: low-bit forms of every parent, beside the FP32 control.
        training: description of the FP32 training.
        fine_tuning: description of the fine-tuning.
        overrides: ``section.key=value`` replacements in ``training``.
        rotations, rotated_structures: of the symmetry test.
        runs: folder of checkpoints and models.
        results: folder of the figures.
        threads: CPU threads, or None for what ``training`` says.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    labels: tuple[Labels, ...] = ("rmd17", "md17")
    recipes: tuple[str, ...] = ("w8a8", "w4a8", "naive-w8a8")
    training: Path = CONFIGS / "ethanol-rmd17.yaml"
    fine_tuning: Path = CONFIGS / "ethanol-qat.yaml"
    overrides: tuple[str, ...] = ()
    rotations: int = Field(default=32, ge=1)
    rotated_structures: int = Field(default=25, ge=1)
    runs: Path = Path("runs/ethanol")
    results: Path = Path("results/ethanol")
    threads: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Cell:
    """One network of the table.

    Attributes:
        labels: whose labels it learnt.
        variant: ``fp32``, ``control`` or the name of a recipe.
        seed: of everything random.
    """

    labels: Labels
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder, model and result: ``rmd17-w4a8-seed0``."""
        return f"{self.labels}-{self.variant}-seed{self.seed}"

    @property
    def parent(self) -> Cell | None:
        return None if self.variant == PARENT else Cell(self.labels, PARENT, self.seed)

    @property
    def dataset(self) -> str:
        return f"{self.labels}/ethanol"


@dataclass(frozen=True)
class Stage:
    """One step towards the table.

    Attributes:
        kind: what is done.
        cell: for which network.
        done: whether its output is there and belongs to what it would be made from.
        output: the file it makes.
    """

    kind: Kind
    cell: Cell
    done: bool
    output: Path


class Ethanol:
    """The table's cells, their settings, and what runs them."""

    def __init__(self, config: EthanolConfig) -> None:
        self.config = config
        self._tests: dict[str, list[Structure]] = {}

    def cells(self) -> Iterator[Cell]:
        """Parents before what is made from them."""
        for seed in self.config.seeds:
            for labels in self.config.labels:
                for variant in (PARENT, CONTROL_NAME, *self.config.recipes):
                    yield Cell(labels, variant, seed)

    def stages(self) -> list[Stage]:
        """Every stage and whether it is done.

        Raises:
            ConfigError: a folder holds a finished run of another configuration.
        """
        return [stage for cell in self.cells() for stage in self._stages_of(cell)]

    def _stages_of(self, cell: Cell) -> Iterator[Stage]:
        model = self.model(cell)
        made = self._is_made(cell)
        yield Stage("train" if cell.variant == PARENT else "quantize", cell, made, model)
        result = self.result(cell)
        judged = made and read_evaluation(result, model) is not None
        yield Stage("evaluate", cell, judged, result)

    def _is_made(self, cell: Cell) -> bool:
        if cell.parent is None:
            return is_finished(self.training(cell))
        return self._is_made(cell.parent) and is_finished(self.fine_tuning(cell))

    def training(self, cell: Cell) -> TrainingConfig:
        """The FP32 training of a cell."""
        own = [f"data.dataset={cell.dataset}", f"run.seed={cell.seed}"]
        if self.config.threads is not None:
            own.append(f"run.threads={self.config.threads}")
        own.append(f"run.output={self._folder(cell)}")
        return load_config(self.config.training, [*self.config.overrides, *own])

    def fine_tuning(self, cell: Cell) -> QuantizationConfig:
        """The fine-tuning of a cell that has a parent."""
        assert cell.parent is not None
        path = self.config.fine_tuning
        parent = self.training(cell.parent)
        run = parent.run.model_copy(
            update={"output": self._folder(cell), "validate_every": 1, "checkpoint_every": 1}
        )
        try:
            tree = yaml.safe_load(path.read_text())
            return QuantizationConfig.model_validate(
                {
                    **tree,
                    "parent": str(self.model(cell.parent)),
                    "recipe": CONTROL if cell.variant == CONTROL_NAME else cell.variant,
                    "loss": tree.get("loss", parent.loss),
                    "run": run,
                }
            )
        except (OSError, yaml.YAMLError, TypeError, AttributeError, ValidationError) as error:
            raise ConfigError(f"{path} does not describe a fine-tuning: {error}") from error

    def model(self, cell: Cell) -> Path:
        """The model file of a cell."""
        return self._folder(cell) / MODEL

    def result(self, cell: Cell) -> Path:
        """The figures of a cell."""
        return self.config.results / f"{cell.name}.json"

    def _folder(self, cell: Cell) -> Path:
        return self.config.runs / cell.name

    def run(
        self,
        kinds: tuple[Kind, ...],
        *,
        say: Say = mute,
        progress: ProgressFactory = no_bars,
    ) -> None:
        """Do what is missing of these kinds, in an order in which everything has what it needs.

        A stage whose predecessor is neither done nor among these kinds waits for another session.

        Raises:
            ConfigError: a folder holds a finished run of another configuration.
        """
        wanted = [stage for stage in self.stages() if stage.kind in kinds]
        for number, stage in enumerate(wanted, start=1):
            label = f"{number}/{len(wanted)} {stage.kind} {stage.cell.name}"
            if stage.done:
                say(f"{label}: done")
                continue
            needed = self._missing(stage)
            if needed is not None:
                say(f"{label}: waits for {needed.name}")
                continue
            say(label)
            started = time.monotonic()
            self._run_stage(stage, progress)
            say(f"{label}: took {time.monotonic() - started:.0f} s")

    def _missing(self, stage: Stage) -> Cell | None:
        """The network that a stage needs and that is not there."""
        needed = stage.cell if stage.kind == "evaluate" else stage.cell.parent
        return None if needed is None or self._is_made(needed) else needed

    def _run_stage(self, stage: Stage, progress: ProgressFactory) -> None:
        cell = stage.cell
        if stage.kind == "train":
            train(self.training(cell))
            return
        if stage.kind == "quantize":
            parent = self.training(Cell(cell.labels, PARENT, cell.seed))
            structures, validation, record = load_training_structures(parent)
            settings = self.fine_tuning(cell)
            fresh = parent_changed(settings)
            quantize(settings, structures, validation, data=record, resume=not fresh)
            return
        self._evaluate(cell, progress)

    def _evaluate(self, cell: Cell, progress: ProgressFactory) -> None:
        config, training = self.config, self.training(cell)
        data = training.data
        torch.set_num_threads(training.run.threads)
        started = time.monotonic()
        if cell.labels not in self._tests:
            dataset = load_dataset(cell.dataset, root=data.root, split=data.split)
            self._tests[cell.labels] = dataset.subset("test")
        parent = None if cell.parent is None else self.model(cell.parent)
        with progress() as bars:
            evaluation = evaluate_model(
                self.model(cell),
                self._tests[cell.labels],
                parent=parent,
                n_rotations=config.rotations,
                rotated_structures=config.rotated_structures,
                time_calls=False,
                seed=cell.seed,
                dataset=cell.dataset,
                split=str(data.split),
                subset="test",
                progress=bars,
            )
        extra: dict[str, Any] = {
            "cell": {"labels": cell.labels, "variant": cell.variant, "seed": cell.seed},
            "command": self.command(cell),
            "settings": self._settings(cell),
            "seconds": round(time.monotonic() - started, 1),
        }
        write_evaluation(self.result(cell), evaluation, self.model(cell), brief=True, extra=extra)

    def _settings(self, cell: Cell) -> dict[str, Any]:
        """What a reader needs to know of how a network was made; equal for all seeds."""
        training = self.training(cell).model_dump(mode="json", exclude={"run"})
        training["data"].pop("root")
        if cell.parent is None:
            return {"training": training}
        left_out = {"run", "parent", "recipe"}
        tuned = self.fine_tuning(cell).model_dump(mode="json", exclude=left_out)
        return {"training": training, "fine_tuning": tuned}

    def epochs(self, stage: Stage) -> tuple[int, int]:
        """How many epochs of a training or fine-tuning are done, and how many it has."""
        if stage.kind == "train":
            total = self.training(stage.cell).optimization.epochs
        else:
            total = self.fine_tuning(stage.cell).epochs
        if stage.done:
            return total, total
        try:
            rows = (stage.output.parent / "metrics.csv").read_text().count("\n") - 1
        except OSError:
            rows = 0
        return min(max(rows, 0), total), total

    def seconds_left(self, stages: Sequence[Stage]) -> dict[Stage, float]:
        """Estimates for the stages that are not done, as far as there is something to go by.

        A finished stage of the same kind tells, or one under way; without either, a few steps of
        the training are timed (uncompiled, so the estimate is high).
        """
        known = _durations(stages)
        for stage in stages:
            pace = None if stage.done or stage.kind == "evaluate" else self._pace(stage)
            if pace is not None:
                known.setdefault(_like(stage), pace * self.epochs(stage)[1])
        left: dict[Stage, float] = {}
        for stage in stages:
            if stage.done:
                continue
            key = _like(stage)
            if key not in known and stage.kind != "evaluate":
                known[key] = self._timed_epoch(stage) * self.epochs(stage)[1]
            if key in known:
                done, total = (0, 1) if stage.kind == "evaluate" else self.epochs(stage)
                left[stage] = known[key] * (total - done) / max(1, total)
        return left

    def _pace(self, stage: Stage) -> float | None:
        """Seconds per epoch of a run under way, from the dates of its files."""
        folder, (done, _) = stage.output.parent, self.epochs(stage)
        if done < MIN_EPOCHS:
            return None
        begun, last = (folder / name for name in ("config.yaml", "metrics.csv"))
        return (last.stat().st_mtime - begun.stat().st_mtime) / done

    def _timed_epoch(self, stage: Stage) -> float:
        parent = self.training(Cell(stage.cell.labels, PARENT, stage.cell.seed))
        structures, _, _ = load_training_structures(parent)
        torch.set_num_threads(parent.run.threads)
        recipe = None if stage.kind == "train" else self.fine_tuning(stage.cell).resolved_recipe
        step = eager_step_seconds(parent, structures, recipe)
        return step * len(structures) / parent.optimization.batch_size

    def command(self, cell: Cell | None = None) -> str:
        """The command that makes one cell and what it needs, or all that is asked for."""
        config, plain = self.config, EthanolConfig()
        low_bit = cell is not None and cell.variant not in (PARENT, CONTROL_NAME)
        options = {
            "seeds": config.seeds if cell is None else (cell.seed,),
            "labels": config.labels if cell is None else (cell.labels,),
            "recipes": (cell.variant,) if cell is not None and low_bit else config.recipes,
            "training": config.training,
            "fine-tuning": config.fine_tuning,
            "rotations": config.rotations,
            "rotated-structures": config.rotated_structures,
        }
        words = ["equibit experiment ethanol"]
        for name, value in options.items():
            if value != getattr(plain, name.replace("-", "_")):
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                words.append(f"--{name} {text}")
        return " ".join([*words, *config.overrides])


def _like(stage: Stage) -> tuple[str, bool]:
    """Stages that take about equally long: trainings, controls, quantisations, evaluations."""
    return stage.kind, stage.cell.variant in (PARENT, CONTROL_NAME)


def _durations(stages: Sequence[Stage]) -> dict[tuple[str, bool], float]:
    """Seconds that finished stages took, by likeness; the longest, since sessions may be partial."""
    known: dict[tuple[str, bool], float] = {}
    for stage in stages:
        if not stage.done:
            continue
        record = stage.output if stage.kind == "evaluate" else stage.output.parent / "summary.json"
        try:
            seconds = float(json.loads(record.read_text(encoding="utf-8"))["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        known[_like(stage)] = max(seconds, known.get(_like(stage), 0.0))
    return known
