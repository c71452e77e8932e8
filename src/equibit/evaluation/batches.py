"""Predictions of many structures: batched, finite, and with errors that name the structure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import TypeVar

import numpy as np

from equibit.structures.errors import EquibitError, ModelError
from equibit.structures.potential import Potential, Prediction
from equibit.structures.structure import Structure

DEFAULT_BATCH_SIZE = 32
MAX_BATCH_ATOMS = 2048  # bounds the memory of a batch, whatever the structures

Item = TypeVar("Item", bound=Sized)

Progress = Callable[[str, int, int | None], None]
"""Called with a stage's name, how much of it is done and how much there is (None: unknown)."""


def silent(stage: str, done: int, total: int | None) -> None:
    """The progress callback that reports nothing."""


def predict_batch(
    potential: Potential,
    structures: Sequence[Structure],
    *,
    first_index: int = 0,
    forces: bool = True,
    stress: bool = False,
) -> list[Prediction]:
    """Predictions of one batch, checked to be finite.

    Raises:
        EquibitError: what the potential raised, its message preceded by the index of the structure.
        ModelError: an energy or force is not finite.
    """
    try:
        predictions = potential.compute(structures, forces=forces, stress=stress)
    except EquibitError as error:
        if len(structures) == 1:
            raise type(error)(f"structure {first_index}: {error}") from error
        for offset, structure in enumerate(structures):
            predict_batch(
                potential,
                [structure],
                first_index=first_index + offset,
                forces=forces,
                stress=stress,
            )
        raise
    for offset, prediction in enumerate(predictions):
        _check_finite(potential, prediction, first_index + offset)
    return predictions


def predict_all(
    potential: Potential,
    structures: Sequence[Structure],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    forces: bool = True,
    stress: bool = False,
    stage: str = "predictions",
    progress: Progress = silent,
) -> list[Prediction]:
    """Predictions in the order of ``structures``; raises what :func:`predict_batch` raises."""
    predictions: list[Prediction] = []
    progress(stage, 0, len(structures))
    for batch in batched(structures, batch_size):
        predictions += predict_batch(
            potential, batch, first_index=len(predictions), forces=forces, stress=stress
        )
        progress(stage, len(predictions), len(structures))
    return predictions


def batched(structures: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive lists of at most ``size`` structures, shorter where these have many atoms."""
    batch: list[Item] = []
    atoms = 0
    for structure in structures:
        if batch and (len(batch) == size or atoms + len(structure) > MAX_BATCH_ATOMS):
            yield batch
            batch, atoms = [], 0
        batch.append(structure)
        atoms += len(structure)
    if batch:
        yield batch


def _check_finite(potential: Potential, prediction: Prediction, index: int) -> None:
    if not np.isfinite(prediction.energy):
        raise ModelError(
            f"structure {index}: {potential.info.name} predicts an energy of {prediction.energy}; "
            "the geometry is outside what it can describe, or the model is damaged"
        )
    if prediction.forces is not None:
        bad = np.flatnonzero(~np.isfinite(prediction.forces).all(axis=1))
        if bad.size:
            raise ModelError(
                f"structure {index}: {potential.info.name} predicts a force of "
                f"{prediction.forces[bad[0]]} on atom {bad[0]}; the geometry is outside what it "
                "can describe, or the model is damaged"
            )
