"""``equibit bench``: everything that evaluates the same network, timed in turns in one run.

Networks have random weights, which cost what trained ones do. On one thread a call is timed by the
processor time of its thread, so that a busy machine hardly matters; ratios are what to quote.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from equibit import engine
from equibit.dynamics.start import masses_of
from equibit.evaluation.batches import Progress, silent
from equibit.evaluation.provenance import Provenance
from equibit.evaluation.record import to_plain
from equibit.experiments.bench_peers import peer_calls, torch_calls
from equibit.experiments.bench_stages import roofline_share, time_stages
from equibit.experiments.bench_systems import ASPIRIN, ETHANOL, water
from equibit.storage import atomic_path, atomic_text
from equibit.structures.errors import ConfigError
from equibit.structures.structure import Structure

Call = Callable[[], object]

SYSTEMS: dict[str, Callable[[], Structure]] = {
    "ethanol": lambda: ETHANOL,
    "aspirin": lambda: ASPIRIN,
    "water-192": lambda: water(64),
    "water-999": lambda: water(333),
}
SIZES = (24, 81, 192, 648, 999, 3000, 9999)  # atoms of the cost curve
ELEMENTS = (1, 6, 8)
_STEP = 1e-9  # fs: dynamics that stays where it is, for the time of a step
_LONGEST = 20.0  # seconds that one contender may take in one system
_COMPILED_ATOMS = 30  # torch.compile takes minutes for large systems
_BATCH = 64  # molecules that threads divide among them
_SHARED = 100  # atoms from which a step may be worth sharing

# Linux counts the peak of getrusage from before the program was started; VmHWM does not.
MEMORY = """
import os, resource, sys
from equibit.experiments.bench_systems import water
structure = water(int(sys.argv[3]))
if sys.argv[1] == "engine":
    from equibit.engine import load
else:
    from equibit.models import load_potential as load
potential = load(sys.argv[2])
potential.compute([structure])
if os.path.exists("/proc/self/status"):
    with open("/proc/self/status") as file:
        print(next(line.split()[1] for line in file if line.startswith("VmHWM")))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""

IMPORT = """
import time
start = time.perf_counter()
from equibit import Calculator
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class BenchSettings:
    """Attributes:
    irreps, layers, attention: of the network.
    recipes: low-bit forms beside float32.
    systems: names of ``SYSTEMS``.
    sizes: atoms of water in the cost curve; none for no curve.
    kernels: instruction sets of the engine; None for the fastest.
    threads: of each contender.
    more_threads: whose wall time is set beside that of one, in the engine; 1 for none.
    rounds: turns; seconds: per contender and turn.
    torch: whether to time PyTorch and what runs its networks.

    Raises:
        ConfigError: an unknown system, or a number out of range.
    """

    irreps: str = "64x0e+64x1o"
    layers: int = 6
    attention: str = "linear"
    recipes: tuple[str, ...] = ("w8a8", "w4a8", "w8a16", "w4a16", "bf16")
    systems: tuple[str, ...] = tuple(SYSTEMS)
    sizes: tuple[int, ...] = SIZES
    kernels: tuple[str, ...] | None = None
    threads: int = 1
    more_threads: int = 2
    rounds: int = 15
    seconds: float = 0.02
    torch: bool = True

    def __post_init__(self) -> None:
        unknown = sorted(set(self.systems) - set(SYSTEMS))
        if unknown:
            raise ConfigError(f"no system {unknown[0]!r}: known are {', '.join(SYSTEMS)}")
        for name in ("layers", "threads", "more_threads", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if min(self.sizes, default=3) < 3:
            raise ConfigError("water has three atoms and more")


def run_bench(
    settings: BenchSettings, output: Path | None, *, progress: Progress = silent
) -> dict[str, Any]:
    """Time everything, and write JSON and a picture beside it.

    Args:
        settings: what to time.
        output: JSON file, or None; the picture has the same name and the suffix ``.svg``.
        progress: called after each system.

    Returns:
        What the JSON holds: for each system and contender the median time in µs, and its ratio to
        PyTorch eager and to the engine's own float32; of small systems also where the engine's time
        goes, and of ethanol's energy the share of the roofline.

    Raises:
        ModelError: the engine is not built, or does not run a recipe.
        WriteError: a file cannot be written.
    """
    import torch

    torch.set_num_threads(settings.threads)
    load_before = os.getloadavg()[0]
    begin = time.perf_counter()
    total = len(settings.systems) + len(settings.sizes) + 2
    with tempfile.TemporaryDirectory() as folder:
        models = saved_models(Path(folder), settings)
        systems, skipped = {}, {}
        for done, name in enumerate(settings.systems):
            progress("bench", done, total)
            systems[name], skipped[name] = _time_system(SYSTEMS[name](), models, settings)
        curve = []
        for done, atoms in enumerate(settings.sizes, start=len(settings.systems)):
            progress("bench", done, total)
            curve.append(_time_size(atoms, models, settings))
        progress("bench", total - 2, total)
        shared = _time_threads(models, settings) if settings.more_threads > 1 else {}
        progress("bench", total - 1, total)
        memory = _memory(models, settings)
        record = {
            "settings": to_plain(settings),
            "network": f"equivariant_transformer, {settings.irreps}, {settings.layers} layers, "
            f"{settings.attention} attention, random weights",
            "clock": "thread processor time" if settings.threads == 1 else "wall time",
            "systems": systems,
            "left_out": skipped,
            "stages": _stages(models, settings),
            "roofline": _roofline(systems, settings),
            "cost_against_atoms": curve,
            "threads": shared,
            "peak_megabytes": memory,
            "import_calculator_seconds": _import_seconds(),
            "model_bytes": {name: path.stat().st_size for name, path in models.items()},
            "provenance": to_plain(Provenance.here()),
            "peers": _peer_versions(),
            "load": [load_before, os.getloadavg()[0]],
            "seconds": round(time.perf_counter() - begin, 1),
        }
    progress("bench", total, total)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_text(output) as file:
            file.write(json.dumps(record, indent=1) + "\n")
        draw_bench(output.with_suffix(".svg"), record)
    return record


def saved_models(folder: Path, settings: BenchSettings) -> dict[str, Path]:
    """One network as float32 and in each recipe, as files."""
    network = {
        "irreps": settings.irreps,
        "layers": settings.layers,
        "attention": settings.attention,
    }
    return {
        recipe: random_model(folder / f"{recipe}.safetensors", recipe, network)
        for recipe in ("fp32", *settings.recipes)
    }


def random_model(path: Path, recipe: str, settings: Mapping[str, Any]) -> Path:
    """A file of a network with random weights, the same for all recipes.

    Args:
        path: of the file.
        recipe: ``fp32``, or a recipe, calibrated on ethanol.
        settings: of the network, its elements aside.
    """
    import torch

    from equibit.models.files import save_model
    from equibit.networks.equivariant_transformer import (
        EquivariantTransformer,
        EquivariantTransformerConfig,
    )
    from equibit.networks.potential import build_graph, orient
    from equibit.quantization.convert import calibrate, freeze_, quantize_

    torch.manual_seed(0)
    config = EquivariantTransformerConfig.model_validate({"elements": ELEMENTS, **settings})
    network = EquivariantTransformer(config)
    if recipe != "fp32":
        quantize_(network, recipe)
        graph, vectors = build_graph([ETHANOL], config.elements, config.cutoff)
        calibrate(network, [orient(network, graph, vectors)])
        freeze_(network)
    save_model(path, network, name=f"random-{recipe}", training={})
    return path


def time_in_turns(
    calls: Mapping[str, Call], *, rounds: int, seconds: float, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds per call. In each round every contender gets about ``seconds``; what has had
    its share of the total sits out the later rounds."""
    repeats, spent = {}, dict.fromkeys(calls, 0.0)
    for name, call in calls.items():
        call()
        begin = clock()
        call()
        taken = max(clock() - begin, 1e-9)
        repeats[name] = max(1, int(seconds / taken))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if spent[name] > _LONGEST:
                continue
            begin = clock()
            for _ in range(repeats[name]):
                call()
            taken = clock() - begin
            spent[name] += taken
            times[name].append(taken / repeats[name])
    return {name: statistics.median(values) for name, values in times.items()}


def engine_calls(
    potential: engine.NativePotential, structure: Structure, threads: int
) -> dict[str, Call]:
    """Energy, energy and forces, a step of dynamics, and the Python call with its checks."""
    network = potential.compiled
    species = np.searchsorted(potential.info.elements, structure.numbers).astype(np.int32)
    positions = np.ascontiguousarray(structure.positions)
    cell = None if structure.cell is None else np.ascontiguousarray(structure.cell)
    periodic = structure.pbc.tolist()
    from equibit.engine import _native  # type: ignore[attr-defined]

    loop = _native.Dynamics(
        model=network,
        outer=None,
        species=species,
        cell=cell,
        periodic=periodic,
        skin=0.5,
        threads=threads,
        masses=masses_of(structure),
        timestep=_STEP,
        inner_steps=1,
        friction=0.0,
        temperature=0.0,
        seed=0,
        bonds=np.zeros((0, 2), np.int32),
        shifts=np.zeros((0, 3)),
        kinds=np.zeros(0, np.int32),
        longest=np.zeros(0),
        most_kinetic=1e9,
        positions=positions,
        velocities=np.zeros_like(positions),
        step=0,
        heat=0.0,
    )
    calls: dict[str, Call] = {"step": lambda: loop.run(1, 1)}
    if threads == 1:
        calls |= {
            "energy": lambda: network.compute(species, positions, cell, periodic, False),
            "forces": lambda: network.compute(species, positions, cell, periodic, True),
            "compute": lambda: potential.compute([structure]),
        }
    return calls


def _time_system(
    structure: Structure, models: Mapping[str, Path], settings: BenchSettings
) -> tuple[dict[str, Any], dict[str, str]]:
    """Median µs and ratios by contender and quantity, and who was left out and why."""
    calls: dict[str, Call] = {}
    skipped: dict[str, str] = {}
    kernels = settings.kernels or (engine.kernel_names()[0],)
    for table in kernels:
        for recipe, path in models.items():
            potential = engine.load(path, kernels=table)
            for what, call in engine_calls(potential, structure, settings.threads).items():
                calls[f"engine {recipe} {table}|{what}"] = call
    if settings.torch:
        small = len(structure) <= _COMPILED_ATOMS
        calls |= torch_calls(models["fp32"], structure, compiled=small)
        if small:
            peers, skipped = peer_calls(models["fp32"], structure, settings.threads)
            calls |= peers
    medians = time_in_turns(
        calls, rounds=settings.rounds, seconds=settings.seconds, clock=_clock(settings)
    )
    return _compared(medians, f"engine fp32 {kernels[0]}"), skipped


def _stages(models: Mapping[str, Path], settings: BenchSettings) -> dict[str, Any]:
    """µs by system, model and stage, of energies and of energies with forces."""
    table = (settings.kernels or (engine.kernel_names()[0],))[0]
    return {
        name: {
            f"{recipe} {what}": time_stages(
                path, structure, kernels=table, forces=what == "forces", rounds=settings.rounds
            )
            for recipe, path in models.items()
            for what in ("energy", "forces")
        }
        for name, structure in ((name, SYSTEMS[name]()) for name in settings.systems)
        if len(structure) <= _COMPILED_ATOMS
    }


def _roofline(systems: Mapping[str, Any], settings: BenchSettings) -> dict[str, Any]:
    """Of ethanol's energy with scalars and vectors alone; empty where that was not timed."""
    from equibit.networks.equivariant_transformer import EquivariantTransformerConfig, parse_irreps

    channels = parse_irreps(settings.irreps)
    if "ethanol" not in systems or set(channels) != {0, 1} or settings.threads > 1:
        return {}
    config = EquivariantTransformerConfig(irreps=settings.irreps, elements=ELEMENTS)
    network = {
        "scalars": channels[0],
        "channels": channels[1],
        "layers": settings.layers,
        "heads": config.heads,
        "cutoff": config.cutoff,
    }
    shares = {}
    for contender, rows in systems["ethanol"].items():
        if contender.startswith("engine w"):
            kernels = contender.rsplit(" ", 1)[1]
            shares[contender] = roofline_share(network, kernels, rows["energy"]["microseconds"])
    return shares


def _compared(medians: Mapping[str, float], own: str) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, seconds in medians.items():
        contender, what = key.split("|")
        same = "forces" if what in ("step", "compute") else what
        row: dict[str, float | None] = {"microseconds": round(1e6 * seconds, 2)}
        for ratio, reference in (
            ("eager_over_this", f"torch eager|{same}"),
            ("compiled_over_this", f"torch compiled|{same}"),
            ("own_fp32_over_this", f"{own}|{what}"),
        ):
            known = medians.get(reference)
            row[ratio] = None if known is None else round(known / seconds, 3)
        rows.setdefault(contender, {})[what] = row
    return rows


def _time_size(atoms: int, models: Mapping[str, Path], settings: BenchSettings) -> dict[str, Any]:
    """µs per atom of a step of dynamics."""
    structure = water(atoms // 3)
    calls = {
        recipe: engine_calls(engine.load(path), structure, settings.threads)["step"]
        for recipe, path in models.items()
    }
    rounds = settings.rounds if atoms < 2000 else max(3, settings.rounds // 3)
    medians = time_in_turns(calls, rounds=rounds, seconds=settings.seconds, clock=_clock(settings))
    return {
        "atoms": len(structure),
        "microseconds_per_atom": {
            recipe: round(1e6 * seconds / len(structure), 3) for recipe, seconds in medians.items()
        },
    }


def _time_threads(models: Mapping[str, Path], settings: BenchSettings) -> dict[str, Any]:
    """Wall time in µs with one thread and with more, in turns: of a step of large systems, which
    threads share, and of a batch of molecules, which they divide among them."""
    counts = (1, settings.more_threads)
    calls: dict[str, Call] = {}
    for recipe, path in models.items():
        for threads in counts:
            potential = engine.load(path, threads=threads)
            batch = [ETHANOL] * _BATCH
            calls[f"{_BATCH} ethanol molecules|{recipe}|{threads}"] = partial(
                potential.compute, batch
            )
            for name in settings.systems:
                structure = SYSTEMS[name]()
                if len(structure) >= _SHARED:
                    call = engine_calls(potential, structure, threads)["step"]
                    calls[f"{name}|{recipe}|{threads}"] = call
    medians = time_in_turns(
        calls, rounds=settings.rounds, seconds=settings.seconds, clock=time.perf_counter
    )
    result: dict[str, Any] = {}
    for key, seconds in medians.items():
        name, recipe, count = key.split("|")
        row = result.setdefault(name, {}).setdefault(recipe, {"microseconds": {}})
        row["microseconds"][count] = round(1e6 * seconds, 2)
        row["one_over_this"] = round(medians[f"{name}|{recipe}|1"] / seconds, 3)
    return result


def _clock(settings: BenchSettings) -> Callable[[], float]:
    return time.thread_time if settings.threads == 1 else time.perf_counter


def _memory(models: Mapping[str, Path], settings: BenchSettings) -> dict[str, dict[str, float]]:
    """Peak resident memory of a fresh process that loads a model and computes water."""
    found: dict[str, dict[str, float]] = {}
    for atoms in (192, *(size for size in settings.sizes if size > 9000)):
        column = {}
        for recipe in models:
            column[f"engine {recipe}"] = _megabytes("engine", models[recipe], atoms // 3)
        if settings.torch and atoms < 1000:
            column["torch eager"] = _megabytes("torch", models["fp32"], atoms // 3)
        found[f"water-{atoms}"] = column
    return found


def _megabytes(what: str, model: Path, molecules: int) -> float:
    said = _python("-c", MEMORY, what, str(model), str(molecules))
    return round(int(said) / (1024 if sys.platform == "linux" else 1024**2), 1)


def _import_seconds() -> float:
    return round(min(float(_python("-c", IMPORT)) for _ in range(3)), 3)


def _python(*arguments: str) -> str:
    source = str(Path(engine.__file__).parents[2])
    search = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": search},
    )
    return done.stdout


def _peer_versions() -> dict[str, str]:
    from importlib import metadata

    versions = {}
    for package in ("torch", "onnxruntime", "torchao"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def draw_bench(path: Path, record: Mapping[str, Any]) -> None:
    """Bars of energies and forces by contender, and cost against atoms; needs matplotlib."""
    from matplotlib.figure import Figure

    systems = record["systems"]
    curve = record["cost_against_atoms"]
    figure = Figure(figsize=(4.2 * (len(systems) + bool(curve)), 5), layout="constrained")
    axes = figure.subplots(1, len(systems) + bool(curve), squeeze=False)[0]
    for axis, (name, contenders) in zip(axes, systems.items(), strict=False):
        shown = {
            contender: rows.get("forces", rows.get("step", rows.get("energy")))
            for contender, rows in contenders.items()
        }
        labels = [
            contender
            if "forces" in contenders[contender] or "step" in contenders[contender]
            else f"{contender} (energy alone)"
            for contender in shown
        ]
        times = [row["microseconds"] for row in shown.values()]
        bars = axis.barh(labels[::-1], times[::-1])
        axis.bar_label(bars, fmt="%.4g", padding=2, fontsize="small")
        axis.set_xscale("log")
        axis.set_xlim(min(times) / 2, max(times) * 6)
        axis.set_title(name)
        axis.set_xlabel("energy + forces, µs")
    if curve:
        axis = axes[-1]
        atoms = [point["atoms"] for point in curve]
        for recipe in curve[0]["microseconds_per_atom"]:
            times = [point["microseconds_per_atom"][recipe] for point in curve]
            axis.plot(atoms, times, "o-", ms=3, lw=1, label=recipe)
        axis.set_xscale("log")
        axis.set_ylim(0)
        axis.set_xlabel("atoms of water")
        axis.set_ylabel("step of dynamics, µs per atom")
        axis.legend()
    figure.suptitle(f"{record['network']}; {record['provenance']['cpu']}", fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
