"""Judging model files: loaded, set beside their parent and their floating-point floors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from equibit.evaluation.activations import activation_code_use
from equibit.evaluation.batches import DEFAULT_BATCH_SIZE, Progress, silent
from equibit.evaluation.equivariance import DEFAULT_ROTATIONS
from equibit.evaluation.evaluate import DEFAULT_ROTATED_STRUCTURES, Evaluation, evaluate
from equibit.evaluation.size import measure_size, weight_code_use
from equibit.models import load_potential, resolve_model
from equibit.structures.structure import Structure

CODE_STRUCTURES = 16  # show how the activations' codes are used


def evaluate_model(
    model: str | Path,
    structures: Sequence[Structure],
    *,
    parent: str | Path | None = None,
    dtype: str | None = None,
    n_rotations: int = DEFAULT_ROTATIONS,
    improper: bool = False,
    rotated_structures: int = DEFAULT_ROTATED_STRUCTURES,
    time_calls: bool = True,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    dataset: str = "structures",
    split: str | None = None,
    subset: str | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """``evaluate`` for a model file: with its size and, where symmetry is measured, all its floors.

    The floors are the LEE of the same network in FP64 and of the FP32 parent in FP32 and FP64, and
    that of both in FP32 without the canonical orientation ("not oriented"), which is what plain
    arithmetic leaves.

    Args:
        model, parent: shipped names or model files.
        structures: with or without labels.
        dtype: arithmetic of the model, its own when None.
        others: see ``evaluate``.

    Raises:
        ModelError, FileFormatError: no such model, or a damaged file.
        EquibitError: see ``evaluate``.
    """
    model_file = resolve_model(model)
    parent_file = None if parent is None else resolve_model(parent)
    potential = load_potential(model, dtype=dtype)
    parent_potential = None if parent is None else load_potential(parent)
    floors = {}
    if n_rotations:
        if parent_potential is not None:
            floors["FP32 parent"] = parent_potential
            floors["FP32 parent, not oriented"] = load_potential(
                parent, canonical_orientation=False
            )
            floors["FP64 parent"] = load_potential(parent, dtype="float64")
        if potential.info.dtype != "float64":
            floors["model, not oriented"] = load_potential(
                model, dtype=dtype, canonical_orientation=False
            )
            floors["FP64 model"] = load_potential(model, dtype="float64")
    return evaluate(
        potential,
        structures,
        parent=parent_potential,
        floors=floors,
        n_rotations=n_rotations,
        improper=improper,
        rotated_structures=rotated_structures,
        time_calls=time_calls,
        batch_size=batch_size,
        seed=seed,
        dataset=dataset,
        split=split,
        subset=subset,
        size=measure_size(model_file, parent=parent_file),
        codes=[
            *weight_code_use(model_file),
            *activation_code_use(potential, structures[:CODE_STRUCTURES]),
        ],
        progress=progress,
    )
