"""Everything that is asked of a potential, measured in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from equibit.evaluation.batches import DEFAULT_BATCH_SIZE, Progress, predict_all, silent
from equibit.evaluation.equivariance import (
    DEFAULT_ROTATIONS,
    Equivariance,
    LieDerivative,
    lie_derivative,
    measure_equivariance,
)
from equibit.evaluation.latency import Latency, measure_latency
from equibit.evaluation.metrics import (
    Answers,
    Comparison,
    NetStatistics,
    compare,
    net_statistics,
    symbol,
)
from equibit.evaluation.provenance import Provenance
from equibit.evaluation.record import Record
from equibit.evaluation.size import CodeUse, ModelSize
from equibit.structures.errors import DatasetError, StructureError
from equibit.structures.potential import Potential, PotentialInfo, Prediction
from equibit.structures.structure import Structure

UNITS = {
    "energy": "meV",
    "energy_per_atom": "meV/atom",
    "forces": "meV/Å",
    "torque": "meV",
    "lie_derivative": "meV/Å/rad",
    "latency": "ms",
    "size": "bytes",
}
DEFAULT_ROTATED_STRUCTURES = 100


@dataclass(frozen=True)
class DataDescription(Record):
    """What the potential was judged on.

    Attributes:
        dataset: name or file.
        split: which split, as the user called it, or None.
        subset: ``train``, ``validation``, ``test`` or None.
        n_structures, n_atoms: how much.
        elements: symbols and how many atoms have each.
        has_energies, has_forces: which labels there are.
    """

    dataset: str
    split: str | None
    subset: str | None
    n_structures: int
    n_atoms: int
    elements: Mapping[str, int]
    has_energies: bool
    has_forces: bool


@dataclass(frozen=True)
class PotentialResults(Record):
    """One potential against the labels.

    Attributes:
        info: of the potential.
        errors: against the labels, or None where there are none.
        net: net force and torque of its predictions.
    """

    info: PotentialInfo
    errors: Comparison | None
    net: NetStatistics


@dataclass(frozen=True)
class Evaluation(Record):
    """The judgement on one potential; ``to_json`` gives everything but the raw arrays.

    Attributes:
        model: the potential under judgement.
        parent: its FP32 parent, or None.
        distance_to_parent: model minus parent, or None.
        equivariance: LEE of the model, or None when no rotation was asked for.
        floors: LEE of the same network in other arithmetic, by label.
        lie: finite-difference Lie derivative of the model.
        latency: times of model and parent, or None.
        size: of the model file, or None where there is no file.
        codes: use of its codes.
        data: what it was judged on.
        provenance: where and with what.
        seed: of the rotations and of the choice of rotated structures.
        units: of every number.
        labels, answers, parent_answers: raw arrays for plots.
    """

    model: PotentialResults
    parent: PotentialResults | None
    distance_to_parent: Comparison | None
    equivariance: Equivariance | None
    floors: Mapping[str, Equivariance]
    lie: LieDerivative | None
    latency: Latency | None
    size: ModelSize | None
    codes: tuple[CodeUse, ...]
    data: DataDescription
    provenance: Provenance
    seed: int
    labels: Answers = field(repr=False, metadata={"json": False})
    answers: Answers = field(repr=False, metadata={"json": False})
    parent_answers: Answers | None = field(repr=False, metadata={"json": False})
    units: Mapping[str, str] = field(default_factory=lambda: dict(UNITS))


def evaluate(
    potential: Potential,
    structures: Sequence[Structure],
    *,
    parent: Potential | None = None,
    floors: Mapping[str, Potential] | None = None,
    n_rotations: int = DEFAULT_ROTATIONS,
    improper: bool = False,
    rotated_structures: int = DEFAULT_ROTATED_STRUCTURES,
    time_calls: bool = True,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    dataset: str = "structures",
    split: str | None = None,
    subset: str | None = None,
    size: ModelSize | None = None,
    codes: Sequence[CodeUse] = (),
    progress: Progress = silent,
) -> Evaluation:
    """Accuracy, distance to the parent, symmetry, conservation, latency and size in one result.

    Args:
        potential: what is judged.
        structures: with or without labels; without, only what needs none is reported.
        parent: the FP32 network it was quantised from.
        floors: the same network in other arithmetic, by label (for example ``"FP64 parent"``);
            their LEE is what rounding of the arithmetic alone costs. The parent is added as
            ``"parent"`` if it is not among them.
        n_rotations: Haar-random rotations of each structure; 0 leaves symmetry out.
        improper: draw from O(3) rather than SO(3).
        rotated_structures: at most this many structures are rotated, chosen by the seed.
        time_calls: measure latency.
        batch_size: structures per call.
        seed: of everything random.
        dataset, split, subset: how the report names the data.
        size, codes: of the model file, where there is one.
        progress: called as the work goes on.

    Raises:
        DatasetError: no structures.
        EquibitError: what a potential raised, naming the structure.
    """
    if not structures:
        raise DatasetError(f"{dataset} holds no structures to evaluate on")
    floors = dict(floors or {})
    if parent is not None and parent not in floors.values():
        floors = {"parent": parent, **floors}

    labels = Answers.of_labels(structures)
    predictions = predict_all(
        potential, structures, batch_size=batch_size, stage="model", progress=progress
    )
    answers = Answers.of_predictions(structures, predictions)
    parent_answers = parent_results = distance = None
    if parent is not None:
        parent_predictions = predict_all(
            parent, structures, batch_size=batch_size, stage="parent", progress=progress
        )
        parent_answers = Answers.of_predictions(structures, parent_predictions)
        parent_results = _results(parent, structures, parent_predictions, parent_answers, labels)
        distance = compare(answers, parent_answers)

    chosen = _choose(structures, rotated_structures, seed)
    equivariance, floor_results, lie = None, {}, None
    if n_rotations:

        def symmetry(candidate: Potential, stage: str) -> Equivariance:
            return measure_equivariance(
                candidate,
                chosen,
                n_rotations=n_rotations,
                improper=improper,
                seed=seed,
                batch_size=batch_size,
                stage=stage,
                progress=progress,
            )

        equivariance = symmetry(potential, "rotations, model")
        floor_results = {
            label: symmetry(floor, f"rotations, {label}") for label, floor in floors.items()
        }
        lie = lie_derivative(potential, chosen, batch_size=batch_size, progress=progress)

    latency = None
    if time_calls:
        timed = {"model": potential} | ({"parent": parent} if parent is not None else {})
        latency = measure_latency(timed, structures, batch_sizes=(1, batch_size), progress=progress)

    return Evaluation(
        model=_results(potential, structures, predictions, answers, labels),
        parent=parent_results,
        distance_to_parent=distance,
        equivariance=equivariance,
        floors=floor_results,
        lie=lie,
        latency=latency,
        size=size,
        codes=tuple(codes),
        data=_describe(labels, dataset, split, subset),
        provenance=Provenance.here(),
        seed=seed,
        labels=labels,
        answers=answers,
        parent_answers=parent_answers,
    )


def _results(
    potential: Potential,
    structures: Sequence[Structure],
    predictions: Sequence[Prediction],
    answers: Answers,
    labels: Answers,
) -> PotentialResults:
    labelled = labels.energies is not None or labels.forces is not None
    forces = [p.forces for p in predictions if p.forces is not None]
    if len(forces) != len(structures):
        raise StructureError(
            f"{potential.info.name} returned no forces although they were asked for"
        )
    return PotentialResults(
        info=potential.info,
        errors=compare(answers, labels) if labelled else None,
        net=net_statistics(structures, forces),
    )


def _choose(structures: Sequence[Structure], limit: int, seed: int) -> Sequence[Structure]:
    if len(structures) <= limit:
        return structures
    chosen = np.random.default_rng(seed).choice(len(structures), size=limit, replace=False)
    return [structures[k] for k in np.sort(chosen)]


def _describe(
    labels: Answers, dataset: str, split: str | None, subset: str | None
) -> DataDescription:
    numbers, counts = np.unique(labels.numbers, return_counts=True)
    return DataDescription(
        dataset=dataset,
        split=split,
        subset=subset,
        n_structures=int(labels.n_atoms.size),
        n_atoms=int(labels.numbers.size),
        elements={symbol(int(z)): int(n) for z, n in zip(numbers, counts, strict=True)},
        has_energies=labels.energies is not None,
        has_forces=labels.forces is not None,
    )
