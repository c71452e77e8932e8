"""Latency of one structure: torch in float32 beside the engine, interleaved in one run.

    python benchmarks/engine_latency.py --output results/engine_latency.json

All contenders take turns and are timed by the processor time of the one thread they use, so that a
busy machine hardly matters; the ratios are what to quote.
Networks have random weights, which cost what trained ones do.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from equibit import engine
from equibit.models.files import load_potential, save_model
from equibit.networks.equivariant_transformer import (
    EquivariantTransformer,
    EquivariantTransformerConfig,
)
from equibit.networks.potential import build_graph, orient
from equibit.quantization.convert import calibrate, freeze_, quantize_
from equibit.storage.atomic import atomic_text
from equibit.structures import Structure

ETHANOL = Structure(
    [6, 6, 8, 1, 1, 1, 1, 1, 1],
    [
        [-0.748, -0.015, 0.024],
        [0.558, 0.420, -0.278],
        [1.293, -0.202, -0.901],
        [-0.988, -0.850, -0.637],
        [-1.316, 0.870, -0.227],
        [-0.814, -0.312, 1.079],
        [0.496, 1.352, -0.851],
        [1.117, 0.608, 0.649],
        [1.950, 0.441, -1.086],
    ],
)


def saved_models(folder: Path, layers: int, attention: str, recipes: list[str]) -> dict[str, Path]:
    """One network as float32 and as each recipe."""
    paths = {}
    for recipe in ["fp32", *recipes]:
        torch.manual_seed(0)
        config = EquivariantTransformerConfig(
            elements=(1, 6, 8), irreps="64x0e+64x1o", layers=layers, attention=attention
        )
        network = EquivariantTransformer(config)
        if recipe != "fp32":
            quantize_(network, recipe)
            graph, vectors = build_graph([ETHANOL], config.elements, config.cutoff)
            calibrate(network, [orient(network, graph, vectors)])
            freeze_(network)
        paths[recipe] = folder / f"{recipe}.safetensors"
        save_model(paths[recipe], network, name=f"random-{recipe}", training={})
    return paths


def interleaved(
    calls: dict[str, Callable[[], object]], rounds: int, seconds: float
) -> dict[str, float]:
    """Median seconds per call; each round gives every contender about ``seconds``."""
    repeats = {}
    for name, call in calls.items():
        call()
        begin = time.thread_time()
        call()
        repeats[name] = max(1, int(seconds / (time.thread_time() - begin)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.thread_time()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.thread_time() - begin) / repeats[name])
    return {name: statistics.median(values) for name, values in times.items()}


def native_calls(potential: engine.NativePotential) -> dict[str, Callable[[], object]]:
    """The compiled call alone and the whole ``compute``."""
    network = potential._network
    species = np.searchsorted(potential.info.elements, ETHANOL.numbers).astype(np.int32)
    positions = np.ascontiguousarray(ETHANOL.positions)
    return {
        "energy": lambda: network.compute(species, positions, None, [False] * 3, False),
        "forces": lambda: network.compute(species, positions, None, [False] * 3, True),
        "compute": lambda: potential.compute([ETHANOL]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--attention", default="softmax", choices=["softmax", "linear"])
    parser.add_argument("--recipes", nargs="*", default=["w8a8", "w4a8", "w4a16"])
    parser.add_argument("--kernels", nargs="*", default=None, help="all that run here by default")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.02, help="per contender and round")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    calls: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = saved_models(Path(folder), arguments.layers, arguments.attention, arguments.recipes)
        if not arguments.no_torch:
            eager = load_potential(paths["fp32"])
            calls["torch fp32 energy"] = lambda: eager.compute([ETHANOL], forces=False)
            calls["torch fp32 forces"] = lambda: eager.compute([ETHANOL])
        for kernels in arguments.kernels or engine.kernel_names():
            for recipe, path in paths.items():
                potential = engine.load(path, kernels=kernels)
                for what, call in native_calls(potential).items():
                    calls[f"{kernels} {recipe} {what}"] = call
        medians = interleaved(calls, arguments.rounds, arguments.seconds)

    best = arguments.kernels[0] if arguments.kernels else engine.kernel_names()[0]
    rows = {}
    for name, seconds in medians.items():
        what = name.rsplit(" ", 1)[1]
        reference = medians.get(f"torch fp32 {'forces' if what == 'compute' else what}")
        own = medians[f"{best} fp32 {what}"]
        rows[name] = {
            "microseconds": round(seconds * 1e6, 2),
            "torch_fp32_over_this": None if reference is None else round(reference / seconds, 2),
            "best_own_fp32_over_this": round(own / seconds, 3),
        }
        print(f"{name:<28}", *(f"{value!s:>10}" for value in rows[name].values()))
    if arguments.output:
        record = {
            "structure": "ethanol",
            "network": f"equivariant_transformer 64x0e+64x1o, {arguments.layers} layers",
            "attention": arguments.attention,
            "threads": 1,
            "processor": _processor(),
            "torch": torch.__version__,
            "command": " ".join(sys.argv[1:]),
            "results": rows,
        }
        with atomic_text(arguments.output) as file:
            file.write(json.dumps(record, indent=1) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
