#!/usr/bin/env python3
"""Training speed: structures a second, eager and compiled.

    python benchmarks/training_throughput.py
    python benchmarks/training_throughput.py --recipe w4a8 --repeats 30
    python benchmarks/training_throughput.py --batch-size 32 \\
        --training src/equibit/experiments/configs/qm9.yaml

One step is what a training does with one batch: its loss, backward (through the forces, where the
loss has them), one AdamW update. Eager and compiled steps are timed in turns and their medians compared, so
that a busy machine slows both alike; the load is recorded beside the figures.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DEFAULT_OUTPUT = Path("results/benchmarks/training_throughput.json")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--training", type=Path, help="run description; the ethanol table's if not")
    parser.add_argument("--dataset", help="name or file; the run description's if not")
    parser.add_argument("--recipe", help="time the fine-tuning of this recipe instead")
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--modes", default="eager,compiled")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    options = parser.parse_args(arguments)
    modes = options.modes.split(",")
    if not set(modes) <= {"eager", "compiled"}:
        parser.error(f"--modes {options.modes}: choose from eager,compiled")
    result = measure(
        training=options.training,
        dataset=options.dataset,
        recipe=options.recipe,
        batch_size=options.batch_size,
        repeats=options.repeats,
        threads=options.threads,
        modes=modes,
    )
    write(options.output, result)
    for name, timing in result["timings"].items():
        print(
            f"{name:9s} {timing['structures_per_second']:8.1f} structures/s   "
            f"{1e3 * timing['median'] / options.batch_size:6.2f} ms a structure   "
            f"first step {timing['first_step']:.1f} s"
        )
    if result["speed_up"] is not None:
        print(f"compiled is {result['speed_up']:.2f} times as fast")
    print(f"load average {result['load_before']:.1f} before, {result['load_after']:.1f} after")
    print(f"written: {options.output}")
    return 0


def measure(
    *,
    training: Path | None,
    dataset: str | None,
    recipe: str | None,
    batch_size: int,
    repeats: int,
    threads: int,
    modes: Sequence[str],
) -> dict[str, Any]:
    """Timings by mode with everything that they depend on."""
    import torch

    from equibit.evaluation.provenance import Provenance
    from equibit.experiments.ethanol import CONFIGS
    from equibit.experiments.throughput import time_interleaved, training_step
    from equibit.quantization.convert import calibrate, quantize_
    from equibit.training.batches import Collator
    from equibit.training.config import load_config
    from equibit.training.module import step_function
    from equibit.training.run import load_training_structures, prepare_network

    torch.set_num_threads(threads)
    load = os.getloadavg()[0]
    overrides = [f"data.train={8 * batch_size}"]
    overrides += [f"data.dataset={dataset}"] if dataset else []
    config = load_config(training or CONFIGS / "ethanol-rmd17.yaml", overrides)
    structures = sorted(load_training_structures(config.data)[0], key=len)
    network = prepare_network(config, structures)
    forces = config.loss.forces > 0
    if recipe is not None:
        quantize_(network, recipe)
        collator = Collator(structures, network, forces=forces)
        calibrate(network, [collator(range(len(structures))).inputs])
    middle = range(7 * batch_size // 2, 9 * batch_size // 2)  # as trainings batch similar sizes
    batch = Collator(structures, network, forces=forces)(middle)
    functions: dict[str, Callable[..., Any]] = {"eager": step_function(config.loss)}
    if "compiled" in modes:
        functions["compiled"] = torch.compile(functions["eager"])
    steps = {mode: training_step(network, batch, functions[mode], config.loss) for mode in modes}
    timings = time_interleaved(steps, batch_size=batch_size, repeats=repeats)
    both = {"eager", "compiled"} <= set(timings)
    return {
        "dataset": config.data.dataset,
        "mean_atoms": float(batch.n_atoms.double().mean()),
        "network": config.network.model_dump(mode="json"),
        "parameters": sum(p.numel() for p in network.parameters()),
        "recipe": recipe or "fp32",
        "timings": {name: timing.to_json() for name, timing in timings.items()},
        "speed_up": timings["eager"].median / timings["compiled"].median if both else None,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "provenance": Provenance.here().to_json(),
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Keep one entry per recipe and number of threads; a new one replaces its predecessor."""
    from equibit.storage.atomic import atomic_text

    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["measurements"]
    except (OSError, ValueError, KeyError, TypeError):
        entries = []

    def key(entry: dict[str, Any]) -> tuple[Any, ...]:
        return entry["dataset"], entry["recipe"], entry["provenance"]["threads"]

    entries = [entry for entry in entries if key(entry) != key(result)] + [result]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_text(path) as file:
        json.dump({"measurements": entries}, file, indent=1, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    raise SystemExit(main())
