"""Stages of experiments: skipped once done, waiting for what they need, resumed after a kill.

An experiment is a list of stages in an order in which each finds what it needs. Trainings,
fine-tunings and evaluations are the same for all experiments, so that several share a parent by
naming the same folder; ``Measure`` is for everything else.
"""

from __future__ import annotations

import contextlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch

from equibit.datasets import load_dataset
from equibit.evaluation.batches import Progress, silent
from equibit.evaluation.evaluate import Evaluation
from equibit.evaluation.files import evaluate_model
from equibit.evaluation.provenance import Provenance
from equibit.evaluation.record import to_plain
from equibit.experiments.throughput import eager_step_seconds
from equibit.models import resolve_model
from equibit.quantization.recipes import Recipe
from equibit.storage import read_container
from equibit.storage.atomic import atomic_text
from equibit.storage.checksum import file_sha256
from equibit.structures import Structure
from equibit.training.config import DataConfig, TrainingConfig
from equibit.training.qat import CONTROL, QuantizationConfig, quantize
from equibit.training.run import (
    MODEL,
    compile_pays,
    finished_run,
    load_training_structures,
    parent_record,
    train,
)

Say = Callable[[str], None]
"""Called with one line when something begins or is found done."""

ProgressFactory = Callable[[], AbstractContextManager[Progress]]
"""Opens the bars of one evaluation; training draws its own, and two displays would collide."""

# Numbers per structure or per code: in the report's own JSON, too long to keep in a repository.
_LONG = ("energy_errors", "force_mae", "force_maximum", "edges")

# Of an uncompiled step's time, measured (`benchmarks/training_throughput.py`): ethanol with forces,
# energies of QM9.
COMPILED_SHARE, COMPILED_SHARE_OF_ENERGIES = 0.36, 0.47
MIN_EPOCHS = 3  # of a run under way, before its pace says anything


def mute(message: str) -> None:
    """The ``Say`` that says nothing."""


@contextlib.contextmanager
def no_bars() -> Iterator[Progress]:
    """The ``ProgressFactory`` without bars."""
    yield silent


class Stage(ABC):
    """One step of an experiment.

    Attributes:
        kind: what is done; ``--stages`` selects by it.
        name: of the network or measurement it is about.
        output: the file it makes.
        needs: stages whose output it reads.
        like: stages of one kind with the same word take about equally long.
    """

    kind: ClassVar[str]

    def __init__(
        self, name: str, output: Path, *, needs: Sequence[Stage] = (), like: str = ""
    ) -> None:
        self.name = name
        self.output = output
        self.needs = tuple(needs)
        self.like = like

    @property
    def done(self) -> bool:
        """Whether its output is there and belongs to what it would be made from.

        Raises:
            ConfigError: its place holds something made with other settings.
        """
        return all(stage.done for stage in self.needs) and self._is_done()

    @abstractmethod
    def _is_done(self) -> bool:
        """``done``, where what it needs is there."""

    @abstractmethod
    def run(self, progress: ProgressFactory = no_bars) -> None:
        """Make the output; called again after a kill, go on."""

    @property
    def waits_for(self) -> Stage | None:
        """The first stage it needs that is not done."""
        return next((stage for stage in self.needs if not stage.done), None)

    def steps(self) -> tuple[int, int]:
        """How much of it is done, and how much there is."""
        return (1, 1) if self.done else (0, 1)

    def seconds_taken(self) -> float | None:
        """Wall time of a finished stage, from its record."""
        return _seconds_in(self.output)

    def seconds_foreseen(self, *, trial: bool) -> float | None:
        """Of all of it, from its pace so far or, where a trial is allowed, from a few steps."""
        return None


class _Run(Stage):
    """A training or fine-tuning: epochs in a folder of its own."""

    settings: TrainingConfig | QuantizationConfig

    def _is_done(self) -> bool:
        return is_finished(self.settings)

    def epochs(self) -> int:
        """How many there are."""
        raise NotImplementedError

    def steps(self) -> tuple[int, int]:
        total = self.epochs()
        if self.done:
            return total, total
        if self.output.exists():
            return 0, total  # of something else
        try:
            rows = (self.output.parent / "metrics.csv").read_text().count("\n") - 1
        except OSError:
            rows = 0
        return min(max(rows, 0), total), total

    def seconds_taken(self) -> float | None:
        return _seconds_in(self.output.parent / "summary.json")

    def seconds_foreseen(self, *, trial: bool) -> float | None:
        pace = self._pace()
        if pace is None and trial:
            pace = self._timed_epoch()
        return None if pace is None else pace * self.epochs()

    def _pace(self) -> float | None:
        """Seconds per epoch of a run under way, from the dates of its files."""
        folder, (done, _) = self.output.parent, self.steps()
        if done < MIN_EPOCHS:
            return None
        begun, last = (folder / name for name in ("config.yaml", "metrics.csv"))
        return (last.stat().st_mtime - begun.stat().st_mtime) / done

    def _timed_epoch(self) -> float | None:
        return None


class Train(_Run):
    """An FP32 training; starts afresh when the model it begins with changed.

    Attributes:
        parent: that makes the model it begins with, if a stage does.
    """

    kind = "train"

    def __init__(
        self, settings: TrainingConfig, *, parent: Train | None = None, like: str = ""
    ) -> None:
        needs = () if parent is None else (parent,)
        super().__init__(settings.run.output.name, model_of(settings), needs=needs, like=like)
        self.settings: TrainingConfig = settings

    def epochs(self) -> int:
        return self.settings.optimization.epochs

    def run(self, progress: ProgressFactory = no_bars) -> None:
        train(self.settings, resume=not parent_changed(self.settings))

    def _timed_epoch(self) -> float:
        return _timed_epoch(self.settings, self.settings.run.threads, self.epochs(), None)


class Quantize(_Run):
    """A fine-tuning of a parent, the FP32 control included; starts afresh when its parent changed.

    Attributes:
        data: what it learns from.
    """

    kind = "quantize"

    def __init__(
        self,
        settings: QuantizationConfig,
        data: DataConfig,
        *,
        parent: Train | None = None,
        like: str = "",
    ) -> None:
        needs = () if parent is None else (parent,)
        control = "control" if settings.recipe == CONTROL else "low-bit"
        super().__init__(
            settings.run.output.name, model_of(settings), needs=needs, like=f"{like} {control}"
        )
        self.settings: QuantizationConfig = settings
        self.data = data
        self.parent = parent

    def epochs(self) -> int:
        return self.settings.epochs

    def _is_done(self) -> bool:
        return not recipe_changed(self.settings) and super()._is_done()

    def run(self, progress: ProgressFactory = no_bars) -> None:
        structures, validation, record = load_training_structures(self.data)
        fresh = parent_changed(self.settings) or recipe_changed(self.settings)
        quantize(self.settings, structures, validation, data=record, resume=not fresh)

    def _timed_epoch(self) -> float | None:
        if self.parent is None:
            return None
        recipe = self.settings.resolved_recipe
        return _timed_epoch(self.parent.settings, self.settings.run.threads, self.epochs(), recipe)


def _timed_epoch(settings: TrainingConfig, threads: int, epochs: int, recipe: Any) -> float:
    """Seconds of one of so many epochs, from uncompiled steps."""
    structures, _, _ = load_training_structures(settings.data)
    torch.set_num_threads(threads)
    # What it begins with may not be there yet, and makes no difference to the time.
    step = eager_step_seconds(settings.model_copy(update={"start": None}), structures, recipe)
    if compile_pays(settings.run, structures, epochs * len(structures)):
        alone = settings.loss.energies_alone
        step *= COMPILED_SHARE_OF_ENERGIES if alone else COMPILED_SHARE
    return step * len(structures) / settings.optimization.batch_size


class Evaluate(Stage):
    """The judgement of a model file on test structures, beside its parent's.

    Attributes:
        data: whose split's test structures are taken.
        limit: how many of them, None for all.
        extra: more keys of the JSON file.
    """

    kind = "evaluate"

    def __init__(
        self,
        made: Train | Quantize,
        output: Path,
        data: DataConfig,
        *,
        parent: Path | None = None,
        limit: int | None = None,
        rotations: int = 32,
        rotated_structures: int = 25,
        seed: int = 0,
        threads: int = 1,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(made.name, output, needs=(made,), like=made.like)
        self.model = made.output
        self.data = data
        self.parent = parent
        self.limit = limit
        self.rotations = rotations
        self.rotated_structures = rotated_structures
        self.seed = seed
        self.threads = threads
        self.extra = dict(extra or {})

    def _is_done(self) -> bool:
        kept = read_evaluation(self.output, self.model)
        # Results from before judgements were described were made as the full form makes them.
        return kept is not None and kept.get("judgement", self._judgement()) == self._judgement()

    def _judgement(self) -> dict[str, Any]:
        """What the figures depend on, besides the model."""
        return {
            "test": self.limit,
            "rotations": self.rotations,
            "rotated_structures": self.rotated_structures,
            "seed": self.seed,
        }

    def run(self, progress: ProgressFactory = no_bars) -> None:
        data = self.data
        torch.set_num_threads(self.threads)
        started = time.monotonic()
        structures = held_out_structures(data.dataset, data.root, data.split, data.units)
        with progress() as bars:
            evaluation = evaluate_model(
                self.model,
                structures[: self.limit],
                parent=self.parent,
                n_rotations=self.rotations,
                rotated_structures=self.rotated_structures,
                time_calls=False,
                seed=self.seed,
                dataset=data.dataset,
                split=str(data.split),
                subset="test",
                progress=bars,
            )
        extra = {
            **self.extra,
            "judgement": self._judgement(),
            "seconds": round(time.monotonic() - started, 1),
        }
        write_evaluation(self.output, evaluation, self.model, brief=True, extra=extra)


class Measure(Stage):
    """Anything else that gives numbers: a function whose answer is kept with what it was asked.

    The file holds ``settings``, ``inputs`` (SHA-256 by name), ``seconds``, ``provenance`` and
    ``result``; it counts while settings and inputs are the same.

    Attributes:
        settings: all that the answer depends on, inputs aside; plain values.
        inputs: files that it reads.
        measure: gives the answer, in values that ``to_plain`` knows.
        foreseen: seconds that it will take, where the settings say so.
    """

    kind = "measure"

    def __init__(
        self,
        name: str,
        output: Path,
        settings: Mapping[str, Any],
        measure: Callable[[Progress], Any],
        *,
        inputs: Sequence[Path] = (),
        needs: Sequence[Stage] = (),
        like: str = "",
        foreseen: float | None = None,
    ) -> None:
        super().__init__(name, output, needs=needs, like=like)
        self.foreseen = foreseen
        self.settings = to_plain(settings)
        self.inputs = tuple(inputs)
        self.measure = measure

    def _is_done(self) -> bool:
        return self.result() is not None

    def seconds_foreseen(self, *, trial: bool) -> float | None:
        return self.foreseen

    def result(self) -> Any:
        """The kept answer, or None where there is none for these settings and inputs."""
        record = self.record()
        return None if record is None else record["result"]

    def record(self) -> dict[str, Any] | None:
        """All that is kept, or None where there is none for these settings and inputs."""
        try:
            kept = json.loads(self.output.read_text(encoding="utf-8"))
            same = kept["settings"] == self.settings and kept["inputs"] == self._digests()
            return kept if same and "result" in kept and "provenance" in kept else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def run(self, progress: ProgressFactory = no_bars) -> None:
        started = time.monotonic()
        with progress() as bars:
            result = to_plain(self.measure(bars))
        record = {
            "settings": self.settings,
            "inputs": self._digests(),
            "seconds": round(time.monotonic() - started, 1),
            "provenance": to_plain(Provenance.here()),
            "result": result,
        }
        write_json(self.output, record)

    def _digests(self) -> dict[str, str]:
        return {f"{path.parent.name}/{path.name}": file_sha256(path) for path in self.inputs}


def run_stages(
    stages: Sequence[Stage], *, say: Say = mute, progress: ProgressFactory = no_bars
) -> None:
    """Do what is missing of these stages, in their order.

    A stage that needs one which is neither done nor among these waits for another session.

    Raises:
        EquibitError: what a stage raised; those before it are kept.
    """
    for number, stage in enumerate(stages, start=1):
        label = f"{number}/{len(stages)} {stage.kind} {stage.name}"
        if stage.done:
            say(f"{label}: done")
            continue
        needed = stage.waits_for
        if needed is not None:
            say(f"{label}: waits for {needed.name}")
            continue
        say(label)
        started = time.monotonic()
        stage.run(progress)
        say(f"{label}: took {time.monotonic() - started:.0f} s")


def seconds_left(stages: Sequence[Stage]) -> dict[Stage, float]:
    """Estimates for the stages that are not done, as far as there is something to go by.

    A finished stage of its like tells, or one under way; without either, a few steps of a training
    are timed.
    """
    known: dict[tuple[str, str], float] = {}
    done = {stage: stage.done for stage in stages}
    for stage in stages:
        # Of several the longest, since sessions may be partial.
        seconds = stage.seconds_taken() if done[stage] else None
        if seconds is not None:
            key = (stage.kind, stage.like)
            known[key] = max(seconds, known.get(key, 0.0))
    left: dict[Stage, float] = {}
    for trial in (False, True):
        for stage in stages:
            key = (stage.kind, stage.like)
            if done[stage] or key in known:
                continue
            seconds = stage.seconds_foreseen(trial=trial)
            if seconds is not None:
                known[key] = seconds
    for stage in stages:
        key = (stage.kind, stage.like)
        if not done[stage] and key in known:
            made, total = stage.steps()
            left[stage] = known[key] * (total - made) / max(1, total)
    return left


@lru_cache(maxsize=4)
def held_out_structures(
    dataset: str, root: Path | None, split: int, units: str | None
) -> list[Structure]:
    """The test structures of a data set, read once."""
    return load_dataset(dataset, root=root, split=split, units=units).subset("test")


def model_of(settings: TrainingConfig | QuantizationConfig) -> Path:
    """The model file that a run writes."""
    return settings.run.output / MODEL


def is_finished(settings: TrainingConfig | QuantizationConfig) -> bool:
    """Whether a run has ended, from the parent that is there now.

    Raises:
        ConfigError: the folder holds a run of another configuration.
        ModelError: there is no parent.
    """
    if parent_changed(settings):
        return False
    name = _begins_with(settings)
    parent = None if name is None else parent_record(name)
    return finished_run(settings, settings.run.output, parent=parent) is not None


def _begins_with(settings: TrainingConfig | QuantizationConfig) -> str | None:
    """The model whose weights a run begins with."""
    return settings.parent if isinstance(settings, QuantizationConfig) else settings.start


def parent_changed(settings: TrainingConfig | QuantizationConfig) -> bool:
    """Whether a run began from another version of its parent, and so must start afresh.

    A finished run knows the digest of its parent; of an unfinished one the dates decide.
    """
    name = _begins_with(settings)
    if name is None:
        return False
    folder, parent = settings.run.output, resolve_model(name)
    try:
        record = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["training"]
        return bool(record["parent"]["sha256"] != file_sha256(parent))
    except (OSError, ValueError, KeyError, TypeError):
        begun = folder / "config.yaml"
        return begun.is_file() and parent.stat().st_mtime > begun.stat().st_mtime


def recipe_changed(settings: QuantizationConfig) -> bool:
    """Whether a folder's model was made by a recipe that had the same name and said otherwise."""
    path = model_of(settings)
    if not path.is_file():
        return False
    quantization = read_container(path, kind="model").header.get("quantization")
    made = None if quantization is None else Recipe.from_mapping(quantization["recipe"])
    return made != settings.resolved_recipe


def read_evaluation(path: Path, model: Path) -> dict[str, Any] | None:
    """The evaluation in a JSON file, or None where it is missing or of another model file."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(plain, dict) or plain.get("model_sha256") != file_sha256(model):
        return None
    return plain


def write_evaluation(
    path: Path,
    evaluation: Evaluation,
    model: Path,
    *,
    brief: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write an evaluation with the digest of its model file and return what was written.

    Args:
        path: JSON file; missing folders are made.
        evaluation: what to write.
        model: the file it is about.
        brief: leave out numbers per structure and per code.
        extra: more keys, before those of the evaluation.
    """
    plain = evaluation.to_json()
    if brief:
        plain = _without_long(plain)
        plain.pop("codes")
    plain = {"model_sha256": file_sha256(model), **(extra or {}), **plain}
    write_json(path, plain)
    return plain


def write_json(path: Path, plain: Any) -> None:
    """Strict JSON, whole or not at all; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_text(path) as file:
        json.dump(plain, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def _without_long(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_long(item) for key, item in value.items() if key not in _LONG}
    if isinstance(value, list):
        return [_without_long(item) for item in value]
    return value


def _seconds_in(record: Path) -> float | None:
    try:
        return float(json.loads(record.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
