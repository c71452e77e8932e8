"""The ethanol table: FP32, control and low-bit networks over seeds, on rMD17 and MD17 labels.

Every cell is a stage that is skipped once its output exists, so the table can be made piece by
piece, by several sessions. Figures on rMD17 and on MD17 labels never share a column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from equibit.experiments.ethanol_table import (
    Table,
    make_table,
    read_results,
    report_tables,
    target_claims,
    write_table,
)
from equibit.experiments.experiment import Experiment, ExperimentConfig
from equibit.experiments.report import Report, places_of
from equibit.experiments.stages import Evaluate, Quantize, Stage, Train
from equibit.quantization.recipes import get_recipe
from equibit.structures.errors import ConfigError
from equibit.training.config import TrainingConfig, load_config
from equibit.training.qat import CONTROL, QuantizationConfig
from equibit.training.run import MODEL

Labels = Literal["rmd17", "md17"]

CONFIGS = Path(str(files("equibit.experiments") / "configs"))
PARENT = "fp32"
CONTROL_NAME = "control"
ELEMENTS = {
    "aspirin": (1, 6, 8),
    "azobenzene": (1, 6, 7),
    "benzene": (1, 6),
    "ethanol": (1, 6, 8),
    "malonaldehyde": (1, 6, 8),
    "naphthalene": (1, 6),
    "paracetamol": (1, 6, 7, 8),
    "salicylic": (1, 6, 8),
    "toluene": (1, 6),
    "uracil": (1, 6, 7, 8),
}
DOCUMENTS = (Path("README.md"), Path("docs/results.md"))


class EthanolConfig(ExperimentConfig):
    """Which cells of the table, and how.

    Attributes:
        seeds: one row of networks each.
        labels: ``rmd17``, ``md17`` or both; the same network is trained on either.
        recipes: low-bit forms of every parent, beside the FP32 control.
        training: description of the FP32 training.
        fine_tuning: description of the fine-tuning.
        overrides: ``section.key=value`` replacements in ``training``.
        rotations, rotated_structures: of the symmetry test.
        molecule: of rMD17, where it is not ethanol.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    labels: tuple[Labels, ...] = ("rmd17", "md17")
    recipes: tuple[str, ...] = ("w8a8", "w4a8", "naive-w8a8")
    training: Path = CONFIGS / "ethanol-rmd17.yaml"
    fine_tuning: Path = CONFIGS / "ethanol-qat.yaml"
    overrides: tuple[str, ...] = ()
    rotations: int = Field(default=32, ge=1)
    rotated_structures: int = Field(default=25, ge=1)
    molecule: str = "ethanol"
    runs: Path = Path("runs/ethanol")
    results: Path = Path("results/ethanol")

    @field_validator("recipes")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(get_recipe(name).name for name in names)

    @field_validator("molecule")
    @classmethod
    def _of_rmd17(cls, name: str) -> str:
        if name not in ELEMENTS:
            raise ValueError(f"no molecule {name!r}: known are {', '.join(ELEMENTS)}")
        return name


@dataclass(frozen=True)
class Cell:
    """One network of the table.

    Attributes:
        labels: whose labels it learnt.
        variant: ``fp32``, ``control`` or the name of a recipe.
        seed: of everything random.
        molecule: of rMD17.
    """

    labels: Labels
    variant: str
    seed: int
    molecule: str = "ethanol"

    @property
    def name(self) -> str:
        """Of its folder, model and result: ``rmd17-w4a8-seed0``."""
        return f"{self.labels}-{self.variant}-seed{self.seed}"

    @property
    def parent(self) -> Cell | None:
        return None if self.variant == PARENT else replace(self, variant=PARENT)

    @property
    def dataset(self) -> str:
        return f"{self.labels}/{self.molecule}"


class Ethanol(Experiment[EthanolConfig]):
    """The table's cells, their settings, and the stages that make them."""

    name = "ethanol"
    config_type = EthanolConfig
    quick_settings: ClassVar[Mapping[str, Any]] = {
        "seeds": (0,),
        "labels": ("rmd17",),
        "overrides": ("data.train=100", "optimization.epochs=3", "run.validate_every=1"),
        "fine_tuning": CONFIGS / "quick-qat.yaml",
        "rotations": 4,
        "rotated_structures": 5,
    }

    def cells(self) -> Iterator[Cell]:
        """Parents before what is made from them."""
        for seed in self.config.seeds:
            for labels in self.config.labels:
                for variant in (PARENT, CONTROL_NAME, *self.config.recipes):
                    yield Cell(labels, variant, seed, self.config.molecule)

    def stages(self) -> list[Stage]:
        """For every cell, what makes it and what judges it.

        Raises:
            ConfigError: a description of a run cannot be read.
        """
        parents: dict[Cell, Train] = {}
        stages: list[Stage] = []
        for cell in self.cells():
            made = self.make(cell, parents)
            stages += [made, self.judge(cell, made)]
        return stages

    def make(self, cell: Cell, parents: dict[Cell, Train]) -> Train | Quantize:
        """The stage that makes a network; its parent is added to ``parents`` or taken from there."""
        if cell.parent is None:
            return parents.setdefault(cell, Train(self.training(cell), like=cell.molecule))
        parent = parents.setdefault(
            cell.parent, Train(self.training(cell.parent), like=cell.molecule)
        )
        return Quantize(
            self.fine_tuning(cell), parent.settings.data, parent=parent, like=cell.molecule
        )

    def judge(self, cell: Cell, made: Train | Quantize) -> Evaluate:
        """The stage that evaluates a network on the test structures."""
        config, training = self.config, self.training(cell)
        return Evaluate(
            made,
            self.result(cell),
            training.data,
            parent=None if cell.parent is None else self.model(cell.parent),
            rotations=config.rotations,
            rotated_structures=config.rotated_structures,
            seed=cell.seed,
            threads=training.run.threads,
            extra={
                "cell": {"labels": cell.labels, "variant": cell.variant, "seed": cell.seed},
                "command": self.command(cell),
                "settings": self._settings(cell),
            },
        )

    def training(self, cell: Cell) -> TrainingConfig:
        """The FP32 training of a cell."""
        elements = list(ELEMENTS[cell.molecule])
        own = [
            f"data.dataset={cell.dataset}",
            f"network.elements={elements}",
            f"run.seed={cell.seed}",
        ]
        if self.config.threads is not None:
            own.append(f"run.threads={self.config.threads}")
        own.append(f"run.output={self._folder(cell)}")
        return load_config(self.config.training, [*self.config.overrides, *own])

    def fine_tuning(self, cell: Cell) -> QuantizationConfig:
        """The fine-tuning of a cell that has a parent."""
        assert cell.parent is not None
        path = self.config.fine_tuning
        parent = self.training(cell.parent)
        run = parent.run.model_copy(
            update={"output": self._folder(cell), "validate_every": 1, "checkpoint_every": 1}
        )
        try:
            tree = yaml.safe_load(path.read_text())
            return QuantizationConfig.model_validate(
                {
                    **tree,
                    "parent": str(self.model(cell.parent)),
                    "recipe": CONTROL if cell.variant == CONTROL_NAME else cell.variant,
                    "loss": tree.get("loss", parent.loss),
                    "run": run,
                }
            )
        except (OSError, yaml.YAMLError, TypeError, AttributeError, ValidationError) as error:
            raise ConfigError(f"{path} does not describe a fine-tuning: {error}") from error

    def model(self, cell: Cell) -> Path:
        """The model file of a cell."""
        return self._folder(cell) / MODEL

    def result(self, cell: Cell) -> Path:
        """The figures of a cell."""
        return self.config.results / f"{cell.name}.json"

    def _folder(self, cell: Cell) -> Path:
        return self.config.runs / cell.name

    def _settings(self, cell: Cell) -> dict[str, Any]:
        """What a reader needs to know of how a network was made; equal for all seeds."""
        training = self.training(cell).model_dump(mode="json", exclude={"run"})
        training["data"].pop("root")
        if cell.parent is None:
            return {"training": training}
        left_out = {"run", "parent", "recipe"}
        tuned = self.fine_tuning(cell).model_dump(mode="json", exclude=left_out)
        return {"training": training, "fine_tuning": tuned}

    def command(self, cell: Cell | None = None) -> str:
        """The command that makes one cell and what it needs, or all that is asked for."""
        if cell is None:
            return super().command()
        changes: dict[str, Any] = {"seeds": (cell.seed,), "labels": (cell.labels,)}
        if cell.variant not in (PARENT, CONTROL_NAME):
            changes["recipes"] = (cell.variant,)
        return Ethanol(self.config.model_copy(update=changes)).command()

    def table(self) -> Table:
        """All that the results folder holds."""
        config = self.config
        return make_table(
            read_results(config.results), config.labels, config.recipes, command=self.command()
        )

    def report(self) -> Report:
        table = self.table()
        results = read_results(self.config.results)
        return self.reported(
            title="Ethanol",
            protocol="One network on rMD17 and MD17 labels of ethanol, split 1, and its low-bit "
            "forms beside an FP32 control with the same extra epochs; 1,000 test structures.",
            tables=tuple(report_tables(table)),
            claims=tuple(target_claims(table)),
            data=table.to_json(),
            places=places_of(result["provenance"] for result in results),
        )

    def write(self) -> list[Path]:
        """The report, ``table.json`` and ``table.md``; the full form also fills documents."""
        documents = () if self.config.quick else DOCUMENTS
        return [*super().write(), *write_table(self.table(), self.config.results, documents)]
