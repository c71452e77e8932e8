"""The papers' dynamics: drift over a nanosecond, force errors under rotation, stability at 500 K."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from equibit import engine
from equibit.datasets import load_dataset
from equibit.dynamics import DynamicsSettings
from equibit.dynamics.run import foresee
from equibit.dynamics.start import find_bonds
from equibit.evaluation.batches import Progress, predict_all
from equibit.evaluation.equivariance import haar_rotations
from equibit.evaluation.summary import number
from equibit.experiments.drift import (
    Contender,
    contender,
    drift_row,
    energy_line,
    file_name,
    run_contender,
)
from equibit.experiments.ethanol import PARENT, Cell, Ethanol
from equibit.experiments.experiment import Experiment, ExperimentConfig
from equibit.experiments.report import NOT_RUN, Claim, Report, Table, Verdict, places_of
from equibit.experiments.stages import Measure, Quantize, Stage, Train, held_out_structures
from equibit.models import resolve_model
from equibit.quantization import RECIPES
from equibit.structures.errors import EquibitError
from equibit.structures.potential import Potential
from equibit.structures.structure import FloatArray, Structure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STRETCH = 0.5  # Å that a bond may leave its reference mean by
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class DynamicsConfig(ExperimentConfig):
    """Who moves, and for how long.

    Attributes:
        variants: ``fp32`` and recipes, of the ethanol table, or names and files of any models;
            ``w4a8+fp32/4`` is r-RESPA.
        structures: data whose first structure all start from; bonds are compared with it.
        steps, timestep, temperature: of the drift, in fs and K.
        hot_steps, hot_temperature: of the stability test.
        labelled: data whose test structures are turned.
        rotated, rotations: test structures, and random rotations of each.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    variants: tuple[str, ...] = ("fp32", "naive-w8a8", "w8a8", "w4a8", "w4a16", "w4a8+fp32/4")
    structures: str = "ethanol-pbe"
    steps: int = Field(default=2_000_000, ge=100, multiple_of=100)
    timestep: float = Field(default=0.5, gt=0)
    temperature: float = Field(default=300.0, ge=0)
    hot_steps: int = Field(default=600_000, ge=100, multiple_of=100)
    hot_temperature: float = Field(default=500.0, ge=0)
    labelled: str = "rmd17/ethanol"
    rotated: int = Field(default=100, ge=1)
    rotations: int = Field(default=8, ge=1)

    @field_validator("variants")
    @classmethod
    def _readable(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            contender(text)
        return texts

    def drift_settings(self) -> DynamicsSettings:
        """NVE at the temperature of the first velocities."""
        return DynamicsSettings(
            steps=self.steps,
            timestep=self.timestep,
            temperature=self.temperature,
            frame_every=_frames(self.steps),
        )

    def hot_settings(self) -> DynamicsSettings:
        """Langevin dynamics that keeps the molecule hot."""
        return DynamicsSettings(
            steps=self.hot_steps,
            timestep=self.timestep,
            ensemble="langevin",
            temperature=self.hot_temperature,
            frame_every=_frames(self.hot_steps),
        )


def _frames(steps: int) -> int:
    """At most two hundred frames, a multiple of the samples' interval."""
    return max(100, steps // 200 // 100 * 100)


class Simulate(Measure):
    """Runs of one contender with every seed; interrupted ones go on.

    Attributes:
        entry, dynamics, seeds: what moves the atoms, how, and from which velocities.
    """

    entry: Contender
    structure: Structure
    dynamics: DynamicsSettings
    seeds: tuple[int, ...]

    def seconds_foreseen(self, *, trial: bool) -> float | None:
        if not trial or not self.inputs or not all(path.is_file() for path in self.inputs):
            return None
        try:
            entry = self.entry
            settings = replace(self.dynamics, outer=entry.outer, inner_steps=entry.inner_steps)
            folder = self.output.parent / "foreseen"
            plan = foresee(entry.model, self.structure, settings, folder)
        except EquibitError:
            return None
        return 1e-6 * plan.microseconds_per_step * settings.steps * len(self.seeds)


class Dynamics(Experiment[DynamicsConfig]):
    """Drift, stability and rotated force errors of the ethanol family, in the engine."""

    name = "dynamics"
    config_type = DynamicsConfig
    quick_settings: ClassVar[Mapping[str, Any]] = {
        "seeds": (0, 1),
        "variants": (
            "ethanol-fp32",
            "ethanol-w8a8",
            "ethanol-w4a8",
            "ethanol-w4a8+ethanol-fp32/4",
        ),
        "steps": 2000,
        "hot_steps": 2000,
        "rotated": 3,
        "rotations": 2,
    }

    def stages(self) -> list[Stage]:
        stages: list[Stage] = []
        made = self._family()
        stages += made.values()
        start = load_dataset(self.config.structures).structures[0]
        for text in self.config.variants:
            entry = contender(text)
            parts = [entry.model] + ([entry.outer] if entry.outer else [])
            files = [made[part].output if part in made else resolve_model(part) for part in parts]
            needs = [made[part] for part in parts if part in made]
            entry = replace(
                entry, model=str(files[0]), outer=str(files[1]) if entry.outer else None
            )
            for kind, settings in (
                ("nve", self.config.drift_settings()),
                ("stability", self.config.hot_settings()),
            ):
                if kind == "nve" or entry.outer is None:
                    stages.append(self._simulation(kind, entry, settings, files, needs, start))
            if entry.outer is None:
                stages.append(self._rotation(text, files[0], needs))
        return stages

    def _family(self) -> dict[str, Train | Quantize]:
        """What makes the models, parents first; shared with the ethanol table."""
        quick = self.config.quick
        family = Ethanol.configured(
            quick=quick, labels=("rmd17",), seeds=(0,), threads=self.config.threads
        )
        parents: dict[Cell, Train] = {}
        made: dict[str, Train | Quantize] = {}
        for text in self.config.variants:
            entry = contender(text)
            for variant in (entry.model, entry.outer):
                if variant == PARENT or variant in RECIPES:
                    made[variant] = family.make(Cell("rmd17", variant, 0), parents)
        for parent in parents.values():
            made.setdefault(PARENT, parent)
        return dict(sorted(made.items(), key=lambda item: item[0] != PARENT))

    def _simulation(
        self,
        kind: str,
        entry: Contender,
        settings: DynamicsSettings,
        files: Sequence[Path],
        needs: Sequence[Stage],
        start: Structure,
    ) -> Simulate:
        config = self.config
        runs = config.runs / kind

        def measure(progress: Progress) -> dict[str, Any]:
            made, reason = run_contender(
                entry, start, settings, config.seeds, runs=runs, progress=progress
            )
            collapses = {
                seed: collapse_time(Path(result.samples), reference)
                for seed, result in made.items()
            }
            return {
                "row": drift_row(entry, made, reason),
                "lines": {seed: energy_line(r) for seed, r in made.items()},
                "collapses": collapses,
            }

        reference = mean_bonds(load_dataset(config.structures).structures)
        stage = Simulate(
            f"{kind} {entry.name}",
            config.results / f"{kind}-{file_name(entry.name)}.json",
            {
                "dynamics": settings.physics(),
                "seeds": config.seeds,
                "structures": config.structures,
                "inner_steps": entry.inner_steps,
                # A model that the engine learns to run is run then.
                "runs_in_engine": all(map(_runs_in_engine, files)),
            },
            measure,
            inputs=files,
            needs=needs,
            like=kind,
        )
        stage.entry, stage.structure = entry, start
        stage.dynamics, stage.seeds = settings, config.seeds
        return stage

    def _rotation(self, text: str, model: Path, needs: Sequence[Stage]) -> Measure:
        config = self.config

        def measure(progress: Progress) -> dict[str, Any]:
            structures = held_out_structures(config.labelled, None, 1, None)[: config.rotated]
            errors = rotated_force_errors(
                engine.load_preferred(model), structures, config.rotations, progress
            )
            return {
                "mean": errors.mean(),
                "quantiles": np.quantile(errors, _QUANTILES),
                "spread_of_rotations": errors.std(axis=1).mean(),
                "errors": np.round(errors, 4),
            }

        return Measure(
            f"rotation {text}",
            config.results / f"rotation-{file_name(text)}.json",
            config.model_dump(mode="json", include={"labelled", "rotated", "rotations"}),
            measure,
            inputs=[model],
            needs=needs,
            like="rotation",
        )

    def report(self) -> Report:
        records = self.records()
        found = {name: record["result"] for name, record in records.items()}
        config = self.config
        return self.reported(
            title="Dynamics",
            protocol=(
                f"In the engine, from a structure of {config.structures}. Drift: {config.steps * config.timestep * 1e-6:g} ns of NVE "
                f"in steps of {config.timestep:g} fs from {config.temperature:g} K; stability: "
                f"{config.hot_steps * config.timestep * 1e-3:g} ps of Langevin dynamics at "
                f"{config.hot_temperature:g} K, collapsed when a bond leaves its mean in "
                f"{config.structures} by more than {STRETCH:g} Å; force errors of "
                f"{config.rotated} test structures of {config.labelled}, each turned "
                f"{config.rotations} times."
            ),
            tables=(
                Table("Drift", _DRIFT, tuple(self._drift_rows("nve", found))),
                Table("Stability", _STABLE, tuple(self._stable_rows(found))),
                Table("Force errors of turned structures", _TURNED, tuple(self._turned(found)),
                      "Mean ‖ΔF‖ over the atoms of a structure. The last column is the standard "
                      "deviation over turns of the same structure: 0 for an equivariant model."),
            ),
            claims=() if config.quick else tuple(_claims(found, config.drift_settings().picoseconds)),
            data={
                name: {key: value for key, value in result.items() if key not in ("lines", "errors")}
                for name, result in found.items()
            },
            places=places_of(record["provenance"] for record in records.values()),
            draw=(lambda figure: draw(figure, found)) if found else None,
        )  # fmt: skip

    def _drift_rows(self, kind: str, found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
        for text in self.config.variants:
            result = found.get(f"{kind} {text}", _ABSENT)
            row = result["row"]
            if row.get("mean") is None:
                reason = f"{NOT_RUN}: {row['reason']}" if row.get("reason") else NOT_RUN
                yield text, reason, "–", "–", "–", "–"
                continue
            widths = [walk_width(*line) for line in result["lines"].values()]
            spread = "" if row["spread"] is None else f" ± {number(row['spread'], 2)}"
            yield (
                text,
                f"{number(row['mean'], 2)}{spread}",
                number(max(abs(slope) for slope in row["slopes"]), 2),
                number(float(np.mean(widths)), 2),
                f"{_collapsed(result)} of {len(row['seeds'])}",
                number(row["core_minutes"], 2),
            )

    def _stable_rows(self, found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
        for text in self.config.variants:
            if contender(text).outer is not None:
                continue
            result = found.get(f"stability {text}", _ABSENT)
            row = result["row"]
            if row.get("mean") is None:
                reason = f"{NOT_RUN}: {row['reason']}" if row.get("reason") else NOT_RUN
                yield text, reason, "–", "–"
                continue
            times = [time for time in result["collapses"].values() if time is not None]
            yield (
                text,
                f"{_collapsed(result)} of {len(row['seeds'])}",
                number(min(times), 3) if times else "–",
                number(row["temperature"]),
            )

    def _turned(self, found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
        for text in self.config.variants:
            if contender(text).outer is not None:
                continue
            result = found.get(f"rotation {text}")
            if result is None:
                yield text, NOT_RUN, "–", "–", "–"
                continue
            low, _, median, _, high = result["quantiles"]
            yield (
                text,
                number(result["mean"]),
                number(median),
                f"{number(low)} to {number(high)}",
                number(result["spread_of_rotations"], 2),
            )


_ABSENT: Mapping[str, Any] = {"row": {}, "lines": {}, "collapses": {}}
_DRIFT = ("", "drift, meV/atom/ps", "largest of a seed", "width about it, meV/atom", "collapsed",
          "processor minutes")  # fmt: skip
_STABLE = ("", "collapsed", "earliest, ps", "temperature, K")
_TURNED = ("", "mean, meV/Å", "median", "5 % to 95 %", "spread of turns")


def rotated_force_errors(
    potential: Potential, structures: Sequence[Structure], rotations: int, progress: Progress
) -> FloatArray:
    """Mean over atoms of ‖F(R·G) − R·F_label‖ in meV/Å. Shape: [structures, rotations]."""
    turns = haar_rotations(len(structures) * rotations)
    turned = [
        replace(
            structure,
            positions=structure.positions @ turn.T,
            forces=np.asarray(structure.forces) @ turn.T,
        )
        for structure, turn in zip(
            [s for s in structures for _ in range(rotations)], turns, strict=True
        )
    ]
    predictions = predict_all(potential, turned, stage="turned", progress=progress)
    errors = [
        1e3 * np.linalg.norm(np.asarray(p.forces) - np.asarray(s.forces), axis=1).mean()
        for p, s in zip(predictions, turned, strict=True)
    ]
    return np.array(errors).reshape(len(structures), rotations)


def mean_bonds(structures: Sequence[Structure]) -> dict[str, float]:
    """Mean length in Å of each kind of bond of the first structure, over all structures."""
    bonds = find_bonds(structures[0])
    positions = np.stack([structure.positions for structure in structures])
    vectors = positions[:, bonds.pairs[:, 0]] - positions[:, bonds.pairs[:, 1]]
    lengths = np.linalg.norm(vectors, axis=-1)
    return {
        label.replace("–", "-"): float(lengths[:, bonds.kinds == kind].mean())
        for kind, label in enumerate(bonds.labels)
    }


def collapse_time(samples: Path, reference: Mapping[str, float]) -> float | None:
    """First time in ps at which a bond is ``STRETCH`` away from its reference, or None."""
    with samples.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for label, mean in reference.items():
                shortest = float(row[f"{label}_min_angstrom"])
                longest = float(row[f"{label}_max_angstrom"])
                # Broken numbers count as broken bonds.
                if not (longest - mean <= STRETCH and mean - shortest <= STRETCH):
                    return float(row["time_ps"])
    return None


def walk_width(times: Sequence[float], change: Sequence[float]) -> float:
    """Standard deviation of an energy about its straight line, in its own unit."""
    slope, offset = np.polyfit(times, change, 1)
    return float(np.std(np.asarray(change) - slope * np.asarray(times) - offset))


def draw(figure: Figure, found: Mapping[str, Any]) -> None:
    """Energies over time, and the distribution of force errors of turned structures."""
    left, right = figure.subplots(1, 2)
    figure.set_size_inches(10, 4)
    for name, result in found.items():
        kind, _, text = name.partition(" ")
        if kind == "nve" and result["lines"]:
            colour = None
            for line in result["lines"].values():
                label = text if colour is None else None
                (drawn,) = left.plot(*line, lw=0.6, alpha=0.7, color=colour, label=label)
                colour = drawn.get_color()
        if kind == "rotation":
            errors = np.sort(np.ravel(result["errors"]))
            right.plot(errors, np.linspace(0, 1, errors.size), lw=1, label=text)
    left.set_xlabel("time, ps")
    left.set_ylabel("total energy − start, meV/atom")
    right.set_xlabel("force error of a turned structure, meV/Å")
    right.set_ylabel("share of structures below")
    for axis in (left, right):
        axis.grid(alpha=0.3, lw=0.5)
        axis.legend(fontsize="x-small")


def _claims(found: Mapping[str, Any], picoseconds: float) -> Iterator[Claim]:
    naive, low = found.get("nve naive-w8a8"), found.get("nve w4a8")
    verdict: Verdict = "not run"
    measured = NOT_RUN
    if naive is not None and naive["row"]["mean"] is not None:
        early = [t for t in naive["collapses"].values() if t is not None and t <= 100]
        measured = f"{len(early)} of {len(naive['collapses'])} within 100 ps"
        verdict = "confirmed" if early else "not confirmed"
    yield Claim(
        "naive INT8 explodes in NVE dynamics", "P2 Fig. 3", "within 100 ps", measured, verdict,
        "here on ethanol, from 300 K",
    )  # fmt: skip
    verdict, measured = "not run", NOT_RUN
    if low is not None and low["row"]["mean"] is not None:
        largest = max(abs(slope) for slope in low["row"]["slopes"])
        measured = f"{number(largest, 2)} meV/atom/ps over {picoseconds:g} ps"
        if picoseconds >= 1000:
            verdict = "surpassed" if largest < 0.15 and not _collapsed(low) else "not confirmed"
    yield Claim(
        "W4A8 conserves the energy over a nanosecond", "P2 Fig. 3", "< 0.15 meV/atom/ps",
        measured, verdict, "largest of all seeds",
    )  # fmt: skip


def _collapsed(result: Mapping[str, Any]) -> int:
    ended = set(result["row"]["collapsed"] or {})
    return len(ended | {seed for seed, time in result["collapses"].items() if time is not None})


def _runs_in_engine(path: Path) -> bool:
    try:
        engine.load(path)
    except EquibitError:
        return False
    return True
