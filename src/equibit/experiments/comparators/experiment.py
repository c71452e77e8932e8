"""What a user would pick instead, trained on rMD17 ethanol and judged beside our engine."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator

from equibit import engine
from equibit.evaluation.batches import Progress
from equibit.evaluation.summary import number
from equibit.experiments.bench import time_in_turns
from equibit.experiments.comparators.footprint import footprint, own_footprint
from equibit.experiments.comparators.judging import TrainComparator, judge
from equibit.experiments.comparators.networks import ForeignPotential, compiled_evaluation
from equibit.experiments.comparators.packages import INSTALL
from equibit.experiments.comparators.registry import COMPARATORS, find_comparator
from equibit.experiments.comparators.training import ComparatorConfig, load_comparator
from equibit.experiments.comparators.xtb import XtbPotential
from equibit.experiments.experiment import Experiment, ExperimentConfig
from equibit.experiments.report import NOT_RUN, Claim, Report, Table, places_of
from equibit.experiments.stages import Measure, Stage, held_out_structures
from equibit.models import resolve_model
from equibit.structures.potential import Potential
from equibit.structures.structure import Structure
from equibit.training.config import DataConfig
from equibit.training.run import load_training_structures

XTB = "gfn2-xtb"
COMPILED = "nequip"  # also timed as one compiled graph
OURS = ("ethanol-fp32", "ethanol-w8a8", "ethanol-w4a8")


class ComparatorsConfig(ExperimentConfig):
    """Who is compared, and with what budget.

    Attributes:
        comparators: names of networks of other packages, and ``gfn2-xtb``.
        models: ours, by name or file.
        dataset, split: what all learn from and are judged on.
        core_minutes: processor time for each training.
        epochs: instead of a budget of time.
        train, test: structures to use, None for all of the split.
        rotations, rotated_structures: of the symmetry test.
        rounds: turns of the timing.
        compile: also time NequIP as one compiled graph, which takes minutes to compile.
        imports: fresh interpreters that time each import.
    """

    comparators: tuple[str, ...] = (*COMPARATORS, XTB)
    models: tuple[str, ...] = OURS
    dataset: str = "rmd17/ethanol"
    split: int = 1
    core_minutes: float = Field(default=60.0, gt=0)
    epochs: int | None = Field(default=None, ge=1)
    train: int | None = Field(default=None, ge=1)
    test: int | None = Field(default=None, ge=1)
    rotations: int = Field(default=32, ge=1)
    rotated_structures: int = Field(default=25, ge=1)
    rounds: int = Field(default=15, ge=1)
    compile: bool = True
    imports: int = Field(default=3, ge=1)

    @field_validator("comparators")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name if name == XTB else find_comparator(name).name for name in names)

    @property
    def data(self) -> DataConfig:
        return DataConfig(dataset=self.dataset, split=self.split, train=self.train)

    def training(self, comparator: str, seed: int) -> ComparatorConfig:
        """How a comparator is trained; several experiments that ask alike share the network."""
        return ComparatorConfig(
            comparator=comparator,
            core_minutes=self.core_minutes,
            epochs=self.epochs,
            quick=self.quick,
            seed=seed,
            threads=self.threads or 1,
        )

    def test_structures(self) -> list[Structure]:
        """What all are judged on."""
        return held_out_structures(self.dataset, None, self.split, None)[: self.test]


class Comparators(Experiment[ComparatorsConfig]):
    """Trainings with one budget, judgements, times on one core in turns, and what installs cost."""

    name = "comparators"
    config_type = ComparatorsConfig
    quick_settings: ClassVar[Mapping[str, Any]] = {
        "epochs": 1,
        "train": 20,
        "test": 5,
        "rotations": 2,
        "rotated_structures": 2,
        "rounds": 2,
        "compile": False,
        "imports": 1,
    }

    def missing(self) -> dict[str, str]:
        """Comparators whose package is not installed, and how it is."""
        found = {}
        for name in self.config.comparators:
            module = "tblite" if name == XTB else COMPARATORS[name].module.partition(".")[0]
            if importlib.util.find_spec(module) is None:
                found[name] = INSTALL[module]
        return found

    def stages(self) -> list[Stage]:
        stages: list[Stage] = []
        trained = list(self._trained())
        for stage in trained:
            stages += [stage, self._judgement(stage.name, stage.potential, stage)]
        absent = self.missing()
        if XTB in self.config.comparators and XTB not in absent:
            stages.append(self._judgement(XTB, self._xtb))
        for model in self.config.models if engine.is_built() else ():
            stages.append(self._judgement(Path(model).stem, lambda m=model: engine.load(m)))  # type: ignore[misc]
        packages = {
            COMPARATORS[name].package: COMPARATORS[name].module
            for name in self.config.comparators
            if name != XTB and name not in absent
        }
        if XTB in self.config.comparators and XTB not in absent:
            packages["tblite"] = "tblite.interface"
        folder = self.config.results
        stages.append(
            Measure(
                "packages",
                folder / "packages.json",
                {"packages": packages, "imports": self.config.imports},
                lambda _: [
                    own_footprint(repeats=self.config.imports),
                    *(
                        footprint(
                            package,
                            module,
                            # PyTorch Geometric leaves the choice of PyTorch to its users.
                            also=() if package == "tblite" else ("torch",),
                            repeats=self.config.imports,
                        )
                        for package, module in packages.items()
                    ),
                ],
            )
        )
        first = [s for s in trained if s.settings.seed == self.config.seeds[0]]
        stages.append(
            Measure(
                "latency",
                folder / "latency.json",
                {
                    **self.config.model_dump(mode="json", include={"rounds", "models", "compile"}),
                    "xtb": XTB not in absent,
                },
                lambda progress: self._latency(first, progress),
                inputs=[stage.output for stage in first],
                needs=first,
            )
        )
        return stages

    def _trained(self) -> Iterator[TrainComparator]:
        absent = self.missing()
        for seed in self.config.seeds:
            for name in self.config.comparators:
                if name != XTB and name not in absent:
                    settings = self.config.training(name, seed)
                    yield TrainComparator(
                        f"{name}-seed{seed}", self.config.runs, settings, self.config.data
                    )

    def _judgement(
        self, name: str, make: Callable[[], Potential], needs: TrainComparator | None = None
    ) -> Measure:
        config = self.config

        def measure(progress: Progress) -> Any:
            torch.set_num_threads(config.threads or 1)
            return judge(
                make(),
                config.test_structures(),
                progress,
                rotations=config.rotations,
                rotated_structures=config.rotated_structures,
                seed=0,
            )

        inputs = [] if needs is None else [needs.output]
        if name in map(_stem, config.models):
            inputs = [resolve_model(next(m for m in config.models if _stem(m) == name))]
        settings = config.model_dump(
            mode="json", include={"dataset", "split", "test", "rotations", "rotated_structures"}
        )
        return Measure(
            name,
            config.results / f"{name}.json",
            settings,
            measure,
            inputs=inputs,
            needs=() if needs is None else (needs,),
        )

    def _xtb(self) -> XtbPotential:
        reference, _, _ = load_training_structures(self.config.data)
        return XtbPotential(reference[:100], XTB)

    def _latency(self, trained: list[TrainComparator], progress: Progress) -> dict[str, float]:
        """Median µs of one call for energy and forces of one molecule, by processor time."""
        torch.set_num_threads(1)
        structure = self.config.test_structures()[0]
        potentials: dict[str, Potential] = {}
        if engine.is_built():
            potentials |= {_stem(model): engine.load(model) for model in self.config.models}
        for stage in trained:
            name = stage.settings.comparator
            potentials[name] = own = load_comparator(stage.output).potential
            if name == COMPILED and self.config.compile:
                batch = own.network.batch([structure])
                evaluation = compiled_evaluation(own.network, batch)
                potentials[f"{name} compiled"] = ForeignPotential(own.network, name, evaluation)
        if XTB in self.config.comparators and XTB not in self.missing():
            potentials[XTB] = XtbPotential([])
        calls = {
            name: lambda potential=potential: potential.compute([structure])
            for name, potential in potentials.items()
        }
        progress("latency", 0, 1)
        medians = time_in_turns(
            calls, rounds=self.config.rounds, seconds=0.05, clock=time.process_time
        )
        progress("latency", 1, 1)
        return {name: 1e6 * seconds for name, seconds in medians.items()}

    def report(self) -> Report:
        stages = self.stages()
        measured = {s.name: s for s in stages if isinstance(s, Measure)}
        results = {name: stage.result() for name, stage in measured.items() if stage.done}
        trained = {s.name: s.record() for s in stages if isinstance(s, TrainComparator)}
        absent = self.missing()
        note = "; ".join(f"{name} is not installed ({how})" for name, how in absent.items())
        return self.reported(
            title="What a user would pick instead",
            protocol=self._protocol(),
            tables=(
                _errors(measured, results, trained, note),
                _times(results.get("latency"), self.config.models),
                _sizes(results.get("packages")),
            ),
            claims=tuple(_records({} if self.config.quick else results)),
            data={"figures": results, "trainings": trained, "not_installed": absent},
            places=places_of(
                record["provenance"] for record in (s.record() for s in measured.values()) if record
            ),
        )

    def _protocol(self) -> str:
        config = self.config
        budget = (
            f"{config.epochs} epochs"
            if config.epochs
            else f"{config.core_minutes:g} minutes of processor time"
        )
        return (
            f"Networks of other packages, each trained on {config.dataset}, split {config.split}, "
            f"for {budget} with the loss and data of our own; the packages' usual architectures, "
            "no search for better settings. Times are medians of calls with energy and forces of "
            "one molecule, neighbours included, one thread, taken in turns in one process."
        )


def _stem(model: str) -> str:
    return Path(model).stem


def _errors(
    measured: Mapping[str, Measure],
    results: Mapping[str, Any],
    trained: Mapping[str, Mapping[str, Any] | None],
    note: str,
) -> Table:
    rows = []
    for name in measured:
        if name in ("packages", "latency"):
            continue
        found, record = results.get(name), trained.get(name)
        cells = [
            "–" if record is None else f"{record['parameters']:,}",
            "–" if record is None else f"{record['epochs']}",
            "–" if record is None else number(record["core_minutes"]),
        ]
        keys = ("energy_mae", "forces_mae", "lee_mean", "lee_median")
        cells += [NOT_RUN if found is None else number(found[key]) for key in keys]
        rows.append((name, *cells))
    columns = ("", "parameters", "epochs", "minutes of training", "energy MAE, meV",
               "force MAE, meV/Å", "LEE mean, meV/Å", "LEE median, meV/Å")  # fmt: skip
    return Table("Errors on test structures", columns, tuple(rows), note)


def _times(latency: Mapping[str, float] | None, models: tuple[str, ...]) -> Table:
    rows = []
    for name, value in (latency or {}).items():
        own = (latency or {}).get(_stem(models[0])) if models else None
        times = NOT_RUN if own is None else f"{number(value / own)}×"
        rows.append((name, number(value), times))
    columns = ("", "µs per call", f"over {_stem(models[0])} in our engine" if models else "–")
    return Table("Time of a call", columns, tuple(rows) or ((NOT_RUN, "–", "–"),))


def _sizes(packages: list[Mapping[str, Any]] | None) -> Table:
    rows = [
        (
            f"{entry['package']} {entry['version']}",
            number(entry["own_megabytes"]),
            number(entry["all_megabytes"]),
            number(entry["import_seconds"]),
        )
        for entry in packages or []
    ]
    columns = ("package", "MB", "MB with all it needs", "seconds to import")
    return Table(
        "What an installation costs",
        columns,
        tuple(rows) or ((NOT_RUN, "–", "–", "–"),),
        "equibit counts as installed to run models, without PyTorch.",
    )


def _records(results: Mapping[str, Any]) -> Iterator[Claim]:
    found = results.get("mace-seed0")
    yield Claim(
        text="MACE on rMD17 ethanol, energy and force MAE (no claim of the papers: the record)",
        source="Batatia et al. 2022",
        published="0.4 meV, 2.1 meV/Å",
        measured=NOT_RUN
        if found is None
        else f"{number(found['energy_mae'])} meV, {number(found['forces_mae'])} meV/Å",
        verdict="not run"
        if found is None
        else "confirmed"
        if found["forces_mae"] <= 1.2 * 2.1
        else "not confirmed",
        why="a larger network, days on a GPU; here the budget above",
    )
