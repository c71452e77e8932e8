"""Stages that train a comparator, and the figures kept of a judgement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equibit.evaluation.batches import Progress
from equibit.evaluation.evaluate import evaluate
from equibit.experiments.comparators.training import (
    ComparatorConfig,
    load_comparator,
    train_comparator,
)
from equibit.experiments.ethanol_table import METRICS
from equibit.experiments.stages import ProgressFactory, Stage, no_bars
from equibit.storage.container import read_container
from equibit.structures.errors import FileFormatError
from equibit.structures.potential import Potential
from equibit.structures.structure import Structure
from equibit.training.config import DataConfig
from equibit.training.run import MODEL, load_training_structures

FIGURES: dict[str, tuple[str, ...]] = {
    name: METRICS[name]
    for name in (
        "energy_mae",
        "energy_rmse",
        "forces_mae",
        "forces_rmse",
        "energy_to_parent",
        "forces_to_parent",
        "lee_mean",
        "lee_median",
        "net_torque",
    )
} | {"structures": ("data", "n_structures")}


class TrainComparator(Stage):
    """The training of a network of another package.

    Attributes:
        settings: of the training.
        data: what it learns from.
    """

    kind = "train"

    def __init__(self, name: str, folder: Path, settings: ComparatorConfig, data: DataConfig):
        super().__init__(name, folder / name / MODEL, like=settings.comparator)
        self.settings = settings
        self.data = data

    def _is_done(self) -> bool:
        return self.record() is not None

    def record(self) -> Mapping[str, Any] | None:
        """What the finished training says of itself, or None for other settings or none."""
        try:
            record = read_container(self.output, kind="checkpoint").header["comparator"]
        except (FileFormatError, KeyError):
            return None
        same = record["settings"] == self.settings.model_dump(mode="json")
        return dict(record) if same else None

    def run(self, progress: ProgressFactory = no_bars) -> None:
        train, validation, record = load_training_structures(self.data)
        with progress() as bars:
            train_comparator(
                self.settings, train, validation, self.output.parent, data=record, progress=bars
            )

    def potential(self) -> Potential:
        """The trained network."""
        return load_comparator(self.output).potential

    def seconds_taken(self) -> float | None:
        record = self.record()
        return None if record is None else 60.0 * record["core_minutes"]

    def seconds_foreseen(self, *, trial: bool) -> float | None:
        return None if self.settings.epochs else 60 * self.settings.core_minutes


def judge(
    potential: Potential,
    structures: Sequence[Structure],
    progress: Progress,
    *,
    parent: Potential | None = None,
    rotations: int,
    rotated_structures: int,
    seed: int,
) -> dict[str, float | None]:
    """Errors in meV and meV/Å, LEE and distance to the parent, by the names of ``FIGURES``."""
    evaluation = evaluate(
        potential,
        structures,
        parent=parent,
        n_rotations=rotations,
        rotated_structures=rotated_structures,
        time_calls=False,
        seed=seed,
        progress=progress,
    ).to_json()
    return {name: _pick(evaluation, path) for name, path in FIGURES.items()}


def _pick(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree
