"""Molecule by molecule: the papers' Table II on MD17 labels, and all of rMD17.

Each molecule's networks are those of ``equibit reproduce ethanol molecule=…``, in folders of their
own, so that both tables and the shipped models share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator

from equibit.evaluation.summary import number
from equibit.experiments.ethanol import (
    CONFIGS,
    ELEMENTS,
    PARENT,
    Cell,
    Ethanol,
    EthanolConfig,
    Labels,
)
from equibit.experiments.experiment import Experiment, ExperimentConfig
from equibit.experiments.published import MACE_RMD17, TABLE_TWO, TABLE_TWO_NETWORKS
from equibit.experiments.report import (
    NOT_RUN,
    Claim,
    Report,
    Table,
    Verdict,
    judged_at_most,
    places_of,
)
from equibit.experiments.stages import Evaluate, Stage, Train, read_evaluation
from equibit.quantization.recipes import get_recipe

MACE_SHARE = 1.5  # of MACE's force error: what we aim at
LOW_BIT_SHARE = 1.05  # of FP32's


class MoleculesConfig(ExperimentConfig):
    """Which molecules, and how each is trained.

    Attributes:
        molecules: of rMD17.
        recipes: low-bit forms of every parent.
        training, fine_tuning, overrides: as of the ethanol table.
        rotations, rotated_structures: of the symmetry test.
    """

    molecules: tuple[str, ...] = tuple(ELEMENTS)
    recipes: tuple[str, ...] = ("w8a8", "w4a8")
    training: Path = CONFIGS / "ethanol-rmd17.yaml"
    fine_tuning: Path = CONFIGS / "ethanol-qat.yaml"
    overrides: tuple[str, ...] = ()
    rotations: int = Field(default=32, ge=1)
    rotated_structures: int = Field(default=25, ge=1)

    @field_validator("molecules")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in ELEMENTS]
        if unknown:
            raise ValueError(f"no molecule {unknown[0]!r}: known are {', '.join(ELEMENTS)}")
        return names

    @field_validator("recipes")
    @classmethod
    def _recipes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(get_recipe(name).name for name in names)


class TableTwoConfig(MoleculesConfig):
    """As ``MoleculesConfig``, with the molecules and the width of Table II."""

    molecules: tuple[str, ...] = tuple(TABLE_TWO)
    recipes: tuple[str, ...] = ("w4a8",)


class _Molecules(Experiment[MoleculesConfig]):
    """Trainings, fine-tunings and judgements of several molecules.

    Attributes:
        labels: whose labels all learn and are judged by.
    """

    labels: ClassVar[Labels]
    title: ClassVar[str]
    quick_settings: ClassVar[Mapping[str, Any]] = {
        "molecules": ("ethanol", "malonaldehyde"),
        "overrides": Ethanol.quick_settings["overrides"],
        "fine_tuning": Ethanol.quick_settings["fine_tuning"],
        "rotations": 4,
        "rotated_structures": 5,
    }

    @classmethod
    def configured(cls, *, quick: bool = False, **given: Any) -> Self:
        """As every experiment; ``runs`` holds one folder per molecule, shared with others."""
        shared = {"runs": Path("runs/quick") if quick else Path("runs")}
        return super().configured(quick=quick, **{**shared, **given})

    def family(self, molecule: str) -> Ethanol:
        """The networks of one molecule, as the ethanol table makes them."""
        config = self.config
        return Ethanol(
            EthanolConfig(
                quick=config.quick,
                seeds=config.seeds,
                labels=(self.labels,),
                recipes=config.recipes,
                training=config.training,
                fine_tuning=config.fine_tuning,
                overrides=config.overrides,
                rotations=config.rotations,
                rotated_structures=config.rotated_structures,
                threads=config.threads,
                molecule=molecule,
                runs=config.runs / molecule,
                results=config.results.parent / molecule,
            )
        )

    def stages(self) -> list[Stage]:
        return [stage for _, stages in self._cells() for stage in stages]

    def _cells(self) -> Iterator[tuple[Cell, list[Stage]]]:
        for molecule in self.config.molecules:
            family, parents = self.family(molecule), dict[Cell, Train]()
            for seed in self.config.seeds:
                for variant in (PARENT, *self.config.recipes):
                    cell = Cell(self.labels, variant, seed, molecule)
                    made = family.make(cell, parents)
                    judged = family.judge(cell, made)
                    made.name = judged.name = f"{molecule} {cell.name}"
                    yield cell, [made, judged]

    def results(self) -> dict[tuple[str, str], dict[int, Mapping[str, Any]]]:
        """Evaluations that are there, by molecule and variant, then by seed."""
        found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
        for cell, (_, judged) in self._cells():
            assert isinstance(judged, Evaluate)
            evaluation = read_evaluation(judged.output, judged.model) if judged.done else None
            if evaluation is not None:
                found.setdefault((cell.molecule, cell.variant), {})[cell.seed] = evaluation
        return found

    def report(self) -> Report:
        found = self.results()
        means = {
            key: (_mean(by_seed, "energy"), _mean(by_seed, "forces"))
            for key, by_seed in found.items()
        }
        config = self.config
        return self.reported(
            title=self.title,
            protocol=(
                f"{len(config.molecules)} molecules, {self.labels} labels, official split 1: 950 + "
                "50 training and validation structures, 1,000 test structures; one network for all, "
                f"{', '.join(config.overrides) or 'settings of the ethanol table'}. MAE, means over "
                "seeds."
            ),
            tables=tuple(self._tables(means)),
            claims=() if config.quick else tuple(self._claims(means)),
            data={
                f"{molecule} {variant}": {
                    seed: {"energy_mae": _error(e, "energy"), "forces_mae": _error(e, "forces"),
                           "lee_mean": e["equivariance"]["forces"]["mean"]}
                    for seed, e in by_seed.items()
                }
                for (molecule, variant), by_seed in found.items()
            },
            places=places_of(e["provenance"] for by in found.values() for e in by.values()),
        )  # fmt: skip

    def _measured(self, means: Mapping[tuple[str, str], tuple[float, float]]) -> Table:
        """Errors measured here, and low-bit forces over those of FP32."""
        variants = (PARENT, *self.config.recipes)
        columns = ["", *(f"{v}: energy | forces" for v in variants)]
        columns += [f"{v} forces over fp32" for v in self.config.recipes]
        rows = []
        for molecule in self.config.molecules:
            cells = [_pair(means.get((molecule, variant))) for variant in variants]
            for recipe in self.config.recipes:
                low, full = means.get((molecule, recipe)), means.get((molecule, PARENT))
                cells.append(NOT_RUN if low is None or full is None else number(low[1] / full[1]))
            rows.append((molecule, *cells))
        note = f"meV and meV/Å. Wanted: low-bit forces at most {LOW_BIT_SHARE:g} of FP32's."
        return Table(
            "Measured here",
            tuple(column.replace(" | ", ", ") for column in columns),
            tuple(rows),
            note,
        )

    def _tables(self, means: Mapping[tuple[str, str], tuple[float, float]]) -> Iterator[Table]:
        yield self._measured(means)

    def _claims(self, means: Mapping[tuple[str, str], tuple[float, float]]) -> Iterator[Claim]:
        raise NotImplementedError


class TableTwo(_Molecules):
    """Table II: seven molecules on MD17 labels, FP32 and W4A8, beside the published figures."""

    name = "table2"
    title = "Table II: seven molecules on MD17 labels"
    labels = "md17"
    config_type = TableTwoConfig

    def _tables(self, means: Mapping[tuple[str, str], tuple[float, float]]) -> Iterator[Table]:
        yield self._measured(means)
        yield Table(
            "Published in paper 1, not measured here",
            ("", *TABLE_TWO_NETWORKS),
            tuple(
                (molecule, *map(_printed, TABLE_TWO[molecule]))
                for molecule in self.config.molecules
                if molecule in TABLE_TWO
            ),
            "meV, meV/Å, as printed in Table II.",
        )

    def _claims(self, means: Mapping[tuple[str, str], tuple[float, float]]) -> Iterator[Claim]:
        for molecule in self.config.molecules:
            if molecule not in TABLE_TWO:
                continue
            found = means.get((molecule, "w4a8"))
            published = TABLE_TWO[molecule][-1]
            for k, (what, unit) in enumerate((("energy", "meV"), ("forces", "meV/Å"))):
                yield Claim(
                    text=f"{molecule}, W4A8, {what}",
                    source="P1 Table II",
                    published=f"{published[k]:g} {unit}",
                    measured=NOT_RUN if found is None else f"{number(found[k])} {unit}",
                    verdict=judged_at_most(None if found is None else found[k], published[k]),
                    why="the papers give ethanol's forces as 2.21 meV/Å, too"
                    if (molecule, what) == ("ethanol", "forces")
                    else "",
                )


class Rmd17(_Molecules):
    """All of rMD17 on official split 1, FP32, W8A8 and W4A8, beside the published record."""

    name = "rmd17"
    title = "rMD17: ten molecules"
    labels = "rmd17"
    config_type = MoleculesConfig

    def _tables(self, means: Mapping[tuple[str, str], tuple[float, float]]) -> Iterator[Table]:
        yield self._measured(means)
        rows = []
        for molecule in self.config.molecules:
            found, record = means.get((molecule, PARENT)), MACE_RMD17[molecule]
            ratio = None if found is None else found[1] / record[1]
            met = NOT_RUN if ratio is None else "yes" if ratio <= MACE_SHARE else "no"
            rows.append(
                (molecule, _printed(record), NOT_RUN if ratio is None else number(ratio), met)
            )
        yield Table(
            "Beside the published record",
            ("", "MACE as published: energy, forces", "our FP32 forces over it",
             f"at most {MACE_SHARE:g}"),
            tuple(rows),
            "MACE: Batatia et al. 2022, 1,000 training structures; not measured here.",
        )  # fmt: skip

    def _claims(self, means: Mapping[tuple[str, str], tuple[float, float]]) -> Iterator[Claim]:
        wanted = {(molecule, variant) for molecule in ELEMENTS for variant in (PARENT, "w8a8")}
        complete = wanted <= set(means)
        growth = 0.0
        if complete:
            ratios = [means[m, "w8a8"][1] / means[m, PARENT][1] - 1 for m in ELEMENTS]
            growth = sum(ratios) / len(ratios)
        verdict: Verdict = "surpassed" if growth < 0.066 else "not confirmed"
        yield Claim(
            text="INT8 forces on rMD17 above FP32, mean over molecules",
            source="P1 IV.B",
            published="22.6 over 21.2 meV/Å, +6.6 %",
            measured=f"{100 * growth:+.1f} %" if complete else NOT_RUN,
            verdict=verdict if complete else "not run",
            why="theirs were trained on QM9 and show no molecule by itself; ours are trained on "
            "each molecule",
        )


def _error(evaluation: Mapping[str, Any], what: str) -> float:
    return float(evaluation["model"]["errors"][what]["mae"])


def _mean(by_seed: Mapping[int, Mapping[str, Any]], what: str) -> float:
    values = [_error(evaluation, what) for evaluation in by_seed.values()]
    return sum(values) / len(values)


def _pair(errors: Sequence[float] | None) -> str:
    return NOT_RUN if errors is None else ", ".join(number(error) for error in errors)


def _printed(published: Sequence[float]) -> str:
    """Figures with the digits they were published with."""
    return ", ".join(f"{figure:g}" for figure in published)
