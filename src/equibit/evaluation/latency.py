"""Time per structure, several potentials measured side by side under the same conditions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from equibit.evaluation.batches import Progress, silent
from equibit.evaluation.provenance import cpu_model, threads
from equibit.evaluation.record import Record
from equibit.structures.errors import ConfigError
from equibit.structures.potential import Potential
from equibit.structures.structure import Structure


@dataclass(frozen=True)
class Timing(Record):
    """Wall time of one call, energies and forces.

    Attributes:
        name: of the potential.
        batch_size: structures in the call.
        n_atoms: atoms in the call.
        median, p10, p90: ms per call over the repeats.
        per_structure: median in ms divided by the batch size.
        repeats: how many calls were timed.
    """

    name: str
    batch_size: int
    n_atoms: int
    median: float
    p10: float
    p90: float
    per_structure: float
    repeats: int


@dataclass(frozen=True)
class Latency(Record):
    """Timings with the conditions they hold for.

    Attributes:
        cpu: model of the processor.
        threads: arithmetic threads.
        timings: one per potential and batch size.
    """

    cpu: str
    threads: int
    timings: tuple[Timing, ...]


def measure_latency(
    potentials: Mapping[str, Potential],
    structures: Sequence[Structure],
    *,
    batch_sizes: Sequence[int] = (1, 32),
    repeats: int = 20,
    warmup: int = 3,
    stage: str = "latency",
    progress: Progress = silent,
) -> Latency:
    """Median wall time per call; the potentials take turns, so that drift hits all alike.

    Each batch repeats the first structures as often as needed to fill it.

    Raises:
        ConfigError: nothing to time, or a count that is not positive.
    """
    if not potentials or not structures:
        raise ConfigError("latency needs at least one potential and one structure")
    if min(batch_sizes) < 1 or repeats < 1 or warmup < 0:
        raise ConfigError(
            f"latency with batch sizes {tuple(batch_sizes)}, {repeats} repeats and {warmup} "
            "warm-up calls; batch sizes and repeats must be at least 1, warm-up at least 0"
        )
    timings: list[Timing] = []
    total = len(batch_sizes) * (warmup + repeats)
    done = 0
    progress(stage, done, total)
    for size in batch_sizes:
        batch = [structures[k % len(structures)] for k in range(size)]
        elapsed: dict[str, list[float]] = {name: [] for name in potentials}
        for turn in range(warmup + repeats):
            for name, potential in potentials.items():
                start = time.perf_counter()
                potential.compute(batch, forces=True)
                if turn >= warmup:
                    elapsed[name].append(1e3 * (time.perf_counter() - start))
            done += 1
            progress(stage, done, total)
        timings += [_timing(name, batch, times) for name, times in elapsed.items()]
    return Latency(cpu=cpu_model(), threads=threads(), timings=tuple(timings))


def _timing(name: str, batch: Sequence[Structure], times: Sequence[float]) -> Timing:
    p10, median, p90 = np.quantile(times, [0.1, 0.5, 0.9])
    return Timing(
        name=name,
        batch_size=len(batch),
        n_atoms=sum(len(s) for s in batch),
        median=float(median),
        p10=float(p10),
        p90=float(p90),
        per_structure=float(median) / len(batch),
        repeats=len(times),
    )
