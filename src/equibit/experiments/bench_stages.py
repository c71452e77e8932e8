"""Where the engine's time goes, and how far it is from what the processor could do."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from equibit.experiments.bench_systems import ETHANOL
from equibit.structures.neighbors import neighbor_list
from equibit.structures.structure import Structure

_REPEATS = 20  # evaluations per turn
_LANES = 4  # 8-bit multiply-adds in the time of a float one, as VNNI has it


def time_stages(
    path: Path, structure: Structure, *, kernels: str, forces: bool, rounds: int
) -> dict[str, float]:
    """Median µs of each stage of one evaluation; ``rest`` is geometry, neighbours and copies.

    Every call of a kernel is measured, which makes the whole some percent slower.
    """
    from equibit.engine import _native  # type: ignore[attr-defined]

    network = _native.load(os.fspath(path), kernels, timed=True)
    species = np.searchsorted(network.elements, structure.numbers).astype(np.int32)
    positions = np.ascontiguousarray(structure.positions)
    cell = None if structure.cell is None else np.ascontiguousarray(structure.cell)
    periodic = structure.pbc.tolist()
    turns: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        _native.take_stage_seconds()
        begin = time.perf_counter()
        for _ in range(_REPEATS):
            network.compute(species, positions, cell, periodic, forces)
        whole = time.perf_counter() - begin
        stages = dict(_native.take_stage_seconds())
        stages["rest"] = whole - sum(stages.values())
        if turn == 0:  # memory is still growing
            continue
        for stage, seconds in stages.items():
            turns.setdefault(stage, []).append(1e6 * seconds / _REPEATS)
    return {stage: round(statistics.median(values), 2) for stage, values in turns.items()}


def roofline_share(
    config: Mapping[str, Any], kernels: str, microseconds: float
) -> dict[str, float]:
    """The least time that the arithmetic of ethanol's energy could take on this processor, and its
    share of the measured time.

    Products of matrices count at four times the rate of float ones, as VNNI has it; filters from
    their table and the edge pass count as float. Loads, stores and all else count nothing.

    Args:
        config: ``scalars``, ``channels`` of degree 1, ``layers``, ``heads`` and ``cutoff``.
    """
    from equibit.engine import _native  # type: ignore[attr-defined]

    atoms = len(ETHANOL)
    edges = len(neighbor_list(ETHANOL, config["cutoff"]))
    width, channels = config["scalars"], config["channels"]
    layers, heads = config["layers"], config["heads"]
    both = width + channels
    per_atom = width * (2 * width + both) + both * width + 2 * both * width
    products = atoms * layers * (per_atom + 3 * channels * 2 * channels)
    columns = width + 3 * channels + heads
    floats = layers * edges * (2 * columns + 3 * width + 14 * channels)
    rate = _native.float_rate(kernels)
    least = 1e6 * (products / _LANES + floats) / rate
    return {
        "float_gigaflops": round(2e-9 * rate, 1),
        "least_microseconds": round(least, 2),
        "share": round(least / microseconds, 3),
    }
