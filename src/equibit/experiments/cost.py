"""What a step costs: against atoms, neighbours, channels, degree and bits; accuracy beside speed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, field_validator

from equibit import engine
from equibit.evaluation.batches import Progress
from equibit.evaluation.summary import number
from equibit.experiments.bench import engine_calls, random_model, time_in_turns
from equibit.experiments.bench_systems import ETHANOL, water
from equibit.experiments.experiment import Experiment, ExperimentConfig
from equibit.experiments.report import NOT_RUN, Claim, Report, Table, Verdict, places_of
from equibit.experiments.stages import Measure, Stage
from equibit.models import resolve_model
from equibit.models.zoo import zoo_entry
from equibit.quantization.recipes import get_recipe
from equibit.structures.neighbors import neighbor_list
from equibit.structures.structure import Structure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEPS = {
    "atoms": "atoms of water at one density",
    "neighbours": "neighbours of an atom, by the cutoff",
    "channels": "channels of each degree, F",
    "degree": "(ℓ_max + 1)²",
}
FIGURE_FOUR = "ethanol"


class CostConfig(ExperimentConfig):
    """What is varied about which network; each sweep leaves the rest as it is.

    Attributes:
        recipes: timed in every sweep, beside each other.
        bits: recipes of the comparison on ethanol and water.
        models: shipped models whose accuracy stands beside their time, FP32 first.
        channels_each, layers, cutoff: of the network (channels of ℓ = 0 and 1; Å).
        atoms, cutoffs, channels, degrees: the sweeps.
        system: atoms of water in the other sweeps.
        rounds, budget: turns, and seconds for each contender in a turn.
    """

    recipes: tuple[str, ...] = ("fp32", "w8a8")
    bits: tuple[str, ...] = ("fp32", "w8a8", "w4a8", "w8a16", "w4a16")
    models: tuple[str, ...] = ("ethanol-fp32", "ethanol-w8a8", "ethanol-w4a8")
    channels_each: int = Field(default=64, ge=4)
    layers: int = Field(default=6, ge=1)
    cutoff: float = Field(default=5.0, gt=0)
    atoms: tuple[int, ...] = (24, 81, 192, 648, 999, 3000)
    cutoffs: tuple[float, ...] = (3.0, 4.0, 5.0, 6.0)
    channels: tuple[int, ...] = (16, 32, 64, 128)
    degrees: tuple[int, ...] = (1, 2, 3)
    system: int = Field(default=192, ge=3)
    rounds: int = Field(default=15, ge=1)
    budget: float = Field(default=0.05, gt=0)

    @field_validator("recipes", "bits")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name if name == "fp32" else get_recipe(name).name for name in names)

    def network(self, *, channels: int | None = None, degree: int = 1) -> str:
        """Irreps of the network."""
        count = channels or self.channels_each
        return "+".join(f"{count}x{k}{'eo'[k % 2]}" for k in range(degree + 1))


class Cost(Experiment[CostConfig]):
    """Times of a step of dynamics in the engine, one thread, by processor time, and their exponents."""

    name = "cost"
    config_type = CostConfig
    quick_settings: ClassVar[Mapping[str, Any]] = {
        "channels_each": 16,
        "layers": 1,
        "atoms": (24, 81),
        "cutoffs": (3.0, 5.0),
        "channels": (8, 16),
        "degrees": (1, 2),
        "system": 24,
        "bits": ("fp32", "w8a8"),
        "rounds": 2,
        "budget": 0.002,
    }

    def stages(self) -> list[Stage]:
        config = self.config
        common = config.model_dump(
            mode="json", include={"channels_each", "layers", "cutoff", "rounds", "budget"}
        )
        stages: list[Stage] = []
        for sweep, field in zip(SWEEPS, ("atoms", "cutoffs", "channels", "degrees"), strict=True):
            settings = {
                **common,
                **config.model_dump(mode="json", include={field, "recipes", "system"}),
            }
            stages.append(
                Measure(
                    sweep,
                    config.results / f"{sweep}.json",
                    settings,
                    lambda progress, sweep=sweep: self._sweep(sweep, progress),  # type: ignore[misc]
                    like=sweep,
                    foreseen=self._seconds(len(getattr(config, field)) * len(config.recipes)),
                )
            )
        stages.append(
            Measure(
                "bits",
                config.results / "bits.json",
                {**common, **config.model_dump(mode="json", include={"bits", "system"})},
                lambda _: {
                    "ethanol": self._times(config.bits, {}, ETHANOL),
                    "water": self._times(config.bits, {}, water(config.system // 3)),
                },
                like="bits",
                foreseen=self._seconds(2 * len(config.bits)),
            )
        )
        stages.append(
            Measure(
                FIGURE_FOUR,
                config.results / f"{FIGURE_FOUR}.json",
                {"models": config.models, "rounds": config.rounds, "budget": config.budget},
                lambda _: self._figure_four(),
                inputs=[resolve_model(name) for name in config.models],
                like=FIGURE_FOUR,
                foreseen=self._seconds(len(config.models)),
            )
        )
        return stages

    def _seconds(self, contenders: int) -> float:
        """Of that many contenders: their turns, and about two seconds to make a network."""
        return contenders * (2.0 + self.config.rounds * self.config.budget)

    def _sweep(self, sweep: str, progress: Progress) -> list[dict[str, Any]]:
        """Points of a sweep: the size that is varied, and µs of a step by recipe."""
        config = self.config
        system = water(config.system // 3)
        points: list[tuple[float, dict[str, Any], Structure]] = []
        if sweep == "atoms":
            for atoms in config.atoms:
                structure = water(atoms // 3)
                points.append((len(structure), {}, structure))
        elif sweep == "neighbours":
            for cutoff in config.cutoffs:
                near = len(neighbor_list(system, cutoff)) / len(system)
                points.append((near, {"cutoff": cutoff}, system))
        elif sweep == "channels":
            for channels in config.channels:
                points.append((channels, {"irreps": config.network(channels=channels)}, system))
        else:
            for degree in config.degrees:
                irreps = {"irreps": config.network(degree=degree)}
                points.append(((degree + 1) ** 2, irreps, system))
        measured = []
        for done, (size, changes, structure) in enumerate(points):
            progress(sweep, done, len(points))
            times = self._times(config.recipes, changes, structure)
            measured.append({"size": size, "microseconds": times})
        progress(sweep, len(points), len(points))
        return measured

    def _times(
        self, recipes: Sequence[str], changes: Mapping[str, Any], structure: Structure
    ) -> dict[str, float]:
        """Median µs of a step of dynamics by recipe, the recipes in turns."""
        config = self.config
        torch.set_num_threads(1)
        settings = {
            "irreps": config.network(),
            "layers": config.layers,
            "cutoff": config.cutoff,
            "attention": "linear",
            **changes,
        }
        with tempfile.TemporaryDirectory() as folder:
            calls = {
                recipe: engine_calls(
                    engine.load(
                        random_model(Path(folder, f"{recipe}.safetensors"), recipe, settings)
                    ),
                    structure,
                    1,
                )["step"]
                for recipe in recipes
            }
            medians = time_in_turns(
                calls, rounds=config.rounds, seconds=config.budget, clock=time.thread_time
            )
        return {recipe: 1e6 * seconds for recipe, seconds in medians.items()}

    def _figure_four(self) -> dict[str, dict[str, Any]]:
        config = self.config
        calls = {
            name: engine_calls(engine.load(name), ETHANOL, 1)["forces"] for name in config.models
        }
        medians = time_in_turns(
            calls, rounds=config.rounds, seconds=config.budget, clock=time.thread_time
        )
        found = {}
        for name in config.models:
            entry = zoo_entry(name)
            found[name] = {
                "microseconds": 1e6 * medians[name],
                "bytes": entry.bytes,
                "figures": entry.figures,
            }
        return found

    def report(self) -> Report:
        records = self.records()
        found = {name: record["result"] for name, record in records.items()}
        config = self.config
        return self.reported(
            title="Cost",
            protocol=(
                f"A step of dynamics (energy and forces) in the engine, one thread, medians by "
                f"processor time, random weights: {config.network()}, {config.layers} layers, cutoff "
                f"{config.cutoff:g} Å; {config.system} atoms of water where atoms are not varied. "
                "Exponents p of t ∝ x^p are fitted by least squares in logarithms."
            ),
            tables=(
                _exponents(found, config.recipes),
                *(_points(sweep, found.get(sweep), config.recipes) for sweep in SWEEPS),
                _bits(found.get("bits"), config.bits),
                _bars(found.get(FIGURE_FOUR), config.models),
            ),
            claims=() if config.quick else tuple(_claims(found, config)),
            data=found,
            places=places_of(record["provenance"] for record in records.values()),
            draw=(lambda figure: draw(figure, found)) if set(SWEEPS) <= set(found) else None,
        )


def exponent(sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float | None]:
    """p of t ∝ x^p and its standard error; None for two points, which any line meets."""
    x, y = np.log(sizes), np.log(times)
    slope, offset = np.polyfit(x, y, 1)
    freedom = len(x) - 2
    if freedom < 1:
        return float(slope), None
    residual = y - slope * x - offset
    error = np.sqrt((residual**2).sum() / freedom / ((x - x.mean()) ** 2).sum())
    return float(slope), float(error)


def _fitted(points: Sequence[Mapping[str, Any]] | None, recipe: str) -> str:
    if not points or len(points) < 2:
        return NOT_RUN
    slope, error = exponent(
        [point["size"] for point in points], [point["microseconds"][recipe] for point in points]
    )
    return f"{slope:.2f}" + ("" if error is None else f" ± {error:.2f}")


def _exponents(found: Mapping[str, Any], recipes: Sequence[str]) -> Table:
    rows = tuple(
        (words, *(_fitted(found.get(sweep), recipe) for recipe in recipes))
        for sweep, words in SWEEPS.items()
    )
    return Table("Exponents", ("t against", *recipes), rows)


def _points(
    sweep: str, points: Sequence[Mapping[str, Any]] | None, recipes: Sequence[str]
) -> Table:
    rows = tuple(
        (number(point["size"]), *(number(point["microseconds"][recipe]) for recipe in recipes))
        for point in points or ()
    )
    columns = (SWEEPS[sweep], *(f"{recipe}, µs" for recipe in recipes))
    return Table(f"Against {sweep}", columns, rows or ((NOT_RUN, *("–" for _ in recipes)),))


def _bits(found: Mapping[str, Mapping[str, float]] | None, recipes: Sequence[str]) -> Table:
    rows = []
    for recipe in recipes:
        cells = []
        for system in ("ethanol", "water"):
            times = None if found is None else found[system]
            own = None if times is None else times.get("fp32")
            cells.append(NOT_RUN if times is None else number(times[recipe]))
            cells.append("–" if times is None or own is None else f"{number(own / times[recipe])}×")
        rows.append((recipe, *cells))
    columns = ("", "ethanol, µs", "FP32 over it", "water, µs", "FP32 over it")
    return Table("Against bits", columns, tuple(rows))


def _bars(found: Mapping[str, Mapping[str, Any]] | None, models: Sequence[str]) -> Table:
    rows = []
    for name in models:
        own = None if found is None else found[name]
        if own is None or found is None:
            rows.append((name, NOT_RUN, "–", "–", "–", "–"))
            continue
        first, figures = found[models[0]], own["figures"] or {}
        rows.append(
            (
                name,
                number(figures.get("energy_mae_mev")),
                number(figures.get("forces_mae_mev_a")),
                number(own["microseconds"]),
                f"{number(first['microseconds'] / own['microseconds'])}×",
                f"{number(first['bytes'] / own['bytes'])}×",
            )
        )
    columns = ("", "energy MAE, meV", "force MAE, meV/Å", "µs, energy and forces",
               "faster than FP32", "smaller file")  # fmt: skip
    return Table("Accuracy, speed and size on ethanol", columns, tuple(rows),
                 "Errors on the rMD17 test set, from the evaluation of each shipped model.")  # fmt: skip


def _claims(found: Mapping[str, Any], config: CostConfig) -> Iterator[Claim]:
    for sweep, words in (("atoms", "n"), ("neighbours", "⟨N⟩")):
        fitted = _fitted(found.get(sweep), "fp32") if "fp32" in config.recipes else NOT_RUN
        verdict: Verdict = "not run"
        if fitted != NOT_RUN:
            verdict = "confirmed" if float(fitted.split()[0]) <= 1.15 else "not confirmed"
        yield Claim(
            f"time grows linearly with {words}", "P1 Table I", "1", fitted, verdict,
            "confirmed up to an exponent of 1.15",
        )  # fmt: skip
    bits = found.get("bits")
    for recipe, published in (("w8a8", 4.0), ("w4a8", 8.0)):
        ratio = None
        if bits is not None and {"fp32", recipe} <= set(bits["water"]):
            ratio = bits["water"]["fp32"] / bits["water"][recipe]
        yield Claim(
            f"{recipe} is faster than FP32 by about 32/k", "P1 Eq. 5", f"{published:g}×",
            NOT_RUN if ratio is None else f"{number(ratio)}×",
            _at_least(ratio, 0.9 * published),
            "ours is a ratio to the FP32 of the same engine; filters, attention and sums stay float",
        )  # fmt: skip
    bars = found.get(FIGURE_FOUR)
    for name, published in (("ethanol-w8a8", 2.37), ("ethanol-w4a8", 2.73)):
        ratio = None
        if bars is not None and {"ethanol-fp32", name} <= set(bars):
            ratio = bars["ethanol-fp32"]["microseconds"] / bars[name]["microseconds"]
        yield Claim(
            f"speed of {name} over FP32 on ethanol", "P1 Fig. 4", f"{published:g}×",
            NOT_RUN if ratio is None else f"{number(ratio)}×",
            _at_least(ratio, published),
            "theirs mixes GPU and CPU protocols; ours is one core, one engine",
        )  # fmt: skip


def _at_least(ratio: float | None, wanted: float) -> Verdict:
    if ratio is None:
        return "not run"
    return "confirmed" if ratio >= wanted else "not confirmed"


def draw(figure: Figure, found: Mapping[str, Any]) -> None:
    """One panel per sweep, both axes logarithmic, and the bars of ethanol where there are any."""
    figure.set_size_inches(12, 6)
    panels = figure.subplots(2, 3).ravel()
    for axis, sweep in zip(panels, SWEEPS, strict=False):
        points = found[sweep]
        sizes = [point["size"] for point in points]
        for recipe in points[0]["microseconds"]:
            axis.loglog(sizes, [p["microseconds"][recipe] for p in points], "o-", label=recipe)
        axis.minorticks_off()
        axis.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
        axis.set_xlabel(SWEEPS[sweep])
        axis.set_ylabel("µs per step")
        axis.grid(alpha=0.3, lw=0.5, which="both")
        axis.legend(fontsize="x-small")
    bars, names = panels[4], list(found.get(FIGURE_FOUR, {}))
    for shift, key, unit in ((-0.2, "energy_mae_mev", "meV"), (0.2, "forces_mae_mev_a", "meV/Å")):
        heights = [(found[FIGURE_FOUR][n]["figures"] or {}).get(key) or 0.0 for n in names]
        label = f"{'energy' if shift < 0 else 'force'} MAE, {unit}"
        bars.bar(np.arange(len(names)) + shift, heights, 0.4, label=label)
    own = found.get(FIGURE_FOUR, {})
    faster = [own[names[0]]["microseconds"] / own[name]["microseconds"] for name in names]
    labels = [f"{name}\n{times:.2f}× as fast" for name, times in zip(names, faster, strict=True)]
    bars.set_xticks(range(len(names)), labels, fontsize="x-small")
    bars.legend(fontsize="x-small")
    panels[5].axis("off")
