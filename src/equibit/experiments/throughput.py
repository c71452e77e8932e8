"""How long a training step takes: energies, forces and their second derivatives, one update."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from equibit.evaluation.record import Record
from equibit.networks.base import AtomisticNetwork
from equibit.quantization.convert import quantize_
from equibit.quantization.recipes import Recipe
from equibit.structures import Structure
from equibit.training.batches import Collator, LabelledBatch
from equibit.training.config import LossConfig, TrainingConfig
from equibit.training.module import (
    StepFunction,
    energy_force_loss,
    label_errors,
    step_function,
)
from equibit.training.run import prepare_network

SAMPLED_BATCHES = 4  # of a run whose structures differ in size


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
    function: StepFunction | None = None,
    loss: LossConfig | None = None,
) -> Callable[[], None]:
    """A function that makes one optimizer step on a batch: loss, backward, AdamW.

    ``function`` is what the loss needs, compiled or not; uncompiled without.
    """
    settings = LossConfig() if loss is None else loss
    compute = step_function(settings) if function is None else function
    # A rate of zero leaves the work as it is and the network where it was.
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        errors = label_errors(network, batch, compute)
        energy_force_loss(*errors, batch.n_atoms, settings).backward()
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
    """Mean seconds of an uncompiled step of a run, its batch made anew; compiled ones take less.

    Structures of several sizes make batches that take unequally long: a few are timed that stand
    for equal shares of an epoch.
    """
    sample = sized_sample(structures, SAMPLED_BATCHES * config.optimization.batch_size)
    network = prepare_network(config, sample)
    if recipe is not None:
        quantize_(network, recipe)
    collator = Collator(sample, network, forces=not config.loss.energies_alone)
    batch_size = min(config.optimization.batch_size, len(sample))
    order = np.argsort(collator.sizes, kind="stable")
    batches = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)

    def step(indices: Sequence[int]) -> Callable[[], None]:
        return lambda: training_step(network, collator(indices), loss=config.loss)()

    steps = {str(k): step(indices.tolist()) for k, indices in enumerate(batches)}
    timings = time_interleaved(steps, batch_size=batch_size, repeats=3)
    return float(np.mean([timing.median for timing in timings.values()]))


def sized_sample(structures: Sequence[Structure], count: int) -> list[Structure]:
    """At most so many structures, evenly spread over their sizes."""
    sizes = [len(structure) for structure in structures]
    order = np.argsort(sizes, kind="stable")
    if len(order) > count:
        order = order[((np.arange(count) + 0.5) * len(order) / count).astype(np.int64)]
    return [structures[k] for k in order]


def _seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
