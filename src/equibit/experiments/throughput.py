"""How long a training step takes: energies, forces and their second derivatives, one update."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from equibit.evaluation.record import Record
from equibit.networks.base import AtomisticNetwork
from equibit.networks.potential import energies_and_edge_gradients
from equibit.quantization.convert import quantize_
from equibit.quantization.recipes import Recipe
from equibit.structures import Structure
from equibit.training.batches import Collator, LabelledBatch
from equibit.training.config import LossConfig, TrainingConfig
from equibit.training.module import StepFunction, energy_force_loss
from equibit.training.run import prepare_network


@dataclass(frozen=True)
class StepTiming(Record):
    """Wall time of training steps.

    Attributes:
        batch_size: structures per step.
        median, p10, p90: seconds per step.
        structures_per_second: batch_size / median.
        first_step: seconds of the first step, compilation included.
        repeats: how many steps were timed.
    """

    batch_size: int
    median: float
    p10: float
    p90: float
    structures_per_second: float
    first_step: float
    repeats: int


def training_step(
    network: AtomisticNetwork,
    batch: LabelledBatch,
    step_function: StepFunction = energies_and_edge_gradients,
    loss: LossConfig | None = None,
) -> Callable[[], None]:
    """A function that makes one optimizer step on a batch: loss, double backward, AdamW."""
    settings = LossConfig() if loss is None else loss
    # A rate of zero leaves the work as it is and the network where it was.
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        atomic, gradients = step_function(network, batch.inputs)
        graph = batch.inputs.graph
        energy_force_loss(
            graph.per_structure(atomic) - batch.energies,
            graph.forces(gradients) - batch.forces,
            batch.n_atoms,
            settings,
        ).backward()
        optimizer.step()

    return step


def time_interleaved(
    steps: Mapping[str, Callable[[], None]], *, batch_size: int, repeats: int
) -> dict[str, StepTiming]:
    """Times of several kinds of steps, taken in turns so that a busy machine slows all alike."""
    first = {name: _seconds(step) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(_seconds(step))
    return {
        name: StepTiming(
            batch_size=batch_size,
            median=float(np.median(taken)),
            p10=float(np.quantile(taken, 0.1)),
            p90=float(np.quantile(taken, 0.9)),
            structures_per_second=batch_size / float(np.median(taken)),
            first_step=first[name],
            repeats=repeats,
        )
        for name, taken in times.items()
    }


def eager_step_seconds(
    config: TrainingConfig, structures: Sequence[Structure], recipe: Recipe | None
) -> float:
    """Median seconds of an uncompiled step of a run; compiled ones take about half."""
    network = prepare_network(config, structures)
    if recipe is not None:
        quantize_(network, recipe)
    batch_size = min(config.optimization.batch_size, len(structures))
    batch = Collator(structures[:batch_size], network)(range(batch_size))
    steps = {"eager": training_step(network, batch, loss=config.loss)}
    return time_interleaved(steps, batch_size=batch_size, repeats=3)["eager"].median


def _seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
