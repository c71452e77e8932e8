"""Many low-bit forms of the same parents, each fine-tuned and judged alike.

What the tables of quantisers and of ablations have in common: the stages, the figures over seeds, and
the words of a cell that was not run.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import Field

from equibit.evaluation.summary import number
from equibit.experiments.ethanol import CONFIGS
from equibit.experiments.ethanol_table import METRICS, Average, pick
from equibit.experiments.experiment import Experiment, ExperimentConfig
from equibit.experiments.report import NOT_RUN, Claim, Table, judged_at_most, places_of
from equibit.experiments.stages import Evaluate, Quantize, Stage, Train, read_evaluation
from equibit.models import resolve_model
from equibit.quantization.recipes import Recipe, get_recipe
from equibit.structures.errors import ConfigError
from equibit.training.config import DataConfig, TrainingConfig, load_config, validated
from equibit.training.qat import CONTROL, QuantizationConfig
from equibit.training.run import MODEL

PARENT = "fp32"

# Settings of a quick form that only shows that everything works.
FEW_STRUCTURES: Mapping[str, Any] = {
    "train": 100,
    "validation": 20,
    "test": 20,
    "fine_tuning": CONFIGS / "quick-qat.yaml",
    "rotations": 2,
    "rotated_structures": 3,
}


class VariantsConfig(ExperimentConfig):
    """What parents there are, and what they are fine-tuned and judged on.

    Attributes:
        training: description of the FP32 training of the parents.
        parent: a shipped model or a file to take for the parent of all seeds instead.
        dataset: what parents and variants learn from and are judged on.
        train, validation, test: structures of its subsets to use, None for all.
        fine_tuning: description of the fine-tuning, the FP32 control included.
        variants: which of them; all without.
        rotations, rotated_structures: of the symmetry test.
        reconstruction_steps: of recipes fitted block by block, None for what they say.
    """

    training: Path = CONFIGS / "ethanol-rmd17.yaml"
    parent: str | None = None
    dataset: str = "rmd17/ethanol"
    train: int | None = Field(default=None, ge=1)
    validation: int | None = Field(default=None, ge=1)
    test: int | None = Field(default=None, ge=1)
    fine_tuning: Path = CONFIGS / "ethanol-qat.yaml"
    variants: tuple[str, ...] = ()
    rotations: int = Field(default=32, ge=1)
    rotated_structures: int = Field(default=25, ge=1)
    reconstruction_steps: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Variant:
    """One low-bit form.

    Attributes:
        name: in folders and tables.
        recipe: what is rounded; its name where a recipe of that name is meant; None for the FP32
            control.
        words: what it is, for the reader.
        tuning: changes in the fine-tuning.
        network: what sets its parent apart, which is then trained anew: changes in its network, as
            ``key=value``, unless the experiment reads them otherwise.
    """

    name: str
    recipe: Recipe | str | None
    words: str = ""
    tuning: Mapping[str, Any] = field(default_factory=dict)
    network: tuple[str, ...] = ()


CONTROL_VARIANT = Variant("control", None, "FP32 with the same extra epochs")

Config = TypeVar("Config", bound=VariantsConfig)


class Variants(Experiment[Config]):
    """An experiment whose rows are variants."""

    config_type: ClassVar[type[ExperimentConfig]] = VariantsConfig
    # The ethanol table judges some of the same models, and as the full form does.
    shared_results: ClassVar[Path] = Path("results/ethanol")

    @abstractmethod
    def known(self) -> Sequence[Variant]:
        """All variants, in the order of the table."""

    def variants(self) -> list[Variant]:
        """Those asked for, the control always.

        Raises:
            ConfigError: no variant of such a name.
        """
        names = [variant.name for variant in self.known()]
        unknown = [name for name in self.config.variants if name not in names]
        if unknown:
            raise ConfigError(f"no variant {unknown[0]!r}: known are {', '.join(names)}")
        wanted = self.config.variants or names
        return [v for v in self.known() if v.name in wanted or v.recipe is None]

    def stages(self) -> list[Stage]:
        parents: dict[Path, Train] = {}
        stages: list[Stage] = []
        for seed in self.config.seeds:
            for network in dict.fromkeys(variant.network for variant in self.variants()):
                trained = self._train(seed, network)
                if trained is not None:
                    parents[trained.output] = trained
                    stages += [trained, self._judge(trained, seed, None)]
            for variant in self.variants():
                parent = self.parent_model(variant, seed)
                made = Quantize(self.tuning(variant, seed), self.data(), parent=parents.get(parent))
                stages += [made, self._judge(made, seed, parent)]
        return [*stages, *self.measurements(stages)]

    def measurements(self, stages: Sequence[Stage]) -> list[Stage]:
        """Further stages, on the models of these."""
        return []

    def data(self) -> DataConfig:
        """What everything learns from."""
        config = self.config
        return DataConfig(dataset=config.dataset, train=config.train, validation=config.validation)

    def training(self, seed: int, network: tuple[str, ...]) -> TrainingConfig:
        """The FP32 training of a parent."""
        config = self.config
        own = [
            f"run.seed={seed}",
            f"data.dataset={config.dataset}",
            f"run.output={self._parent_folder(seed, network)}",
            *self.changes(seed, network),
        ]
        if config.train is not None:
            own.append(f"data.train={config.train}")
        if config.validation is not None:
            own.append(f"data.validation={config.validation}")
        if config.threads is not None:
            own.append(f"run.threads={config.threads}")
        return load_config(config.training, own)

    def changes(self, seed: int, network: tuple[str, ...]) -> list[str]:
        """What sets a parent apart, as changes in the description of its training."""
        return [f"network.{change}" for change in network]

    def parent_model(self, variant: Variant, seed: int) -> Path:
        """The FP32 network that a variant is made from."""
        if self.config.parent is not None and not variant.network:
            return resolve_model(self.config.parent)
        return self._parent_folder(seed, variant.network) / MODEL

    def tuning(self, variant: Variant, seed: int) -> QuantizationConfig:
        """The fine-tuning of a variant."""
        config = self.config
        try:
            described = yaml.safe_load(config.fine_tuning.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{config.fine_tuning} is not readable: {error}") from error
        parent = config.parent
        if parent is None or variant.network:
            parent = str(self.parent_model(variant, seed))
        run = {
            "output": self.folder(variant, seed),
            "seed": seed,
            "threads": config.threads or 1,
            "validate_every": 1,
            "checkpoint_every": 1,
        }
        return validated(
            QuantizationConfig,
            {
                "loss": self.training(seed, variant.network).loss,
                **described,
                **variant.tuning,
                "parent": parent,
                "recipe": self._recipe(variant),
                "run": run,
            },
            source=f"variant {variant.name} with {config.fine_tuning}",
        )

    def _recipe(self, variant: Variant) -> Recipe | str:
        if variant.recipe is None:
            return CONTROL
        steps = self.config.reconstruction_steps
        recipe = variant.recipe
        plain = resolved(recipe)
        if steps is None or plain.reconstruction is None:
            return recipe
        shorter = plain.reconstruction.model_copy(update={"steps": steps})
        return plain.model_copy(update={"reconstruction": shorter})

    def folder(self, variant: Variant, seed: int) -> Path:
        """Where a variant is made."""
        return self.config.runs / f"{self._prefix()}-{variant.name}-seed{seed}"

    def _parent_folder(self, seed: int, network: tuple[str, ...]) -> Path:
        changes = "".join(f"-{change.replace('=', '-')}" for change in network)
        return self.config.runs / f"{self._prefix()}-{PARENT}{changes}-seed{seed}"

    def _prefix(self) -> str:
        """Whose labels: rmd17, md17, or the name of another data set or file."""
        path = Path(self.config.dataset)
        return path.stem if path.suffix else path.parts[0]

    def _train(self, seed: int, network: tuple[str, ...]) -> Train | None:
        if self.config.parent is not None and not network:
            return None
        return Train(self.training(seed, network))

    def _judge(self, made: Train | Quantize, seed: int, parent: Path | None) -> Evaluate:
        config = self.config
        return Evaluate(
            made,
            self.result(made.output),
            self.data(),
            parent=parent,
            limit=config.test,
            rotations=config.rotations,
            rotated_structures=config.rotated_structures,
            seed=seed,
            threads=config.threads or 1,
            extra={"command": self.command()},
        )

    def evaluations(self, variant: Variant) -> dict[int, dict[str, Any]]:
        """What was measured of a variant, by seed."""
        found = {}
        for seed in self.config.seeds:
            model = self.folder(variant, seed) / MODEL
            if model.is_file():
                plain = read_evaluation(self.result(model), model)
                if plain is not None:
                    found[seed] = plain
        return found

    def result(self, model: Path) -> Path:
        """Where the figures of a model are, or are to be."""
        name = f"{model.parent.name}.json"
        shared = self.shared_results / name
        if not self.config.quick and model.is_file() and read_evaluation(shared, model) is not None:
            return shared
        return self.config.results / name

    def metric(self, variant: Variant, name: str) -> Average | None:
        """A figure of a variant over its seeds, by its name in ``METRICS``."""
        values = {s: pick(plain, METRICS[name]) for s, plain in self.evaluations(variant).items()}
        return Average.of({seed: v for seed, v in values.items() if v is not None})

    def ratio(self, variant: Variant, name: str, other: Variant) -> float | None:
        """A figure of one variant over that of another, mean of the seeds both have."""
        mine, theirs = self.metric(variant, name), self.metric(other, name)
        if mine is None or theirs is None:
            return None
        shared = [seed for seed in mine.values if theirs.values.get(seed)]
        ratios = [mine.values[seed] / theirs.values[seed] for seed in shared]
        return sum(ratios) / len(ratios) if ratios else None

    def over(self, variant: Variant, metric: str, other: Variant) -> str:
        """A cell: the ratio to another form, which has none to itself."""
        if variant.name == other.name:
            return "–"
        ratio = self.ratio(variant, metric, other)
        return NOT_RUN if ratio is None else number(ratio)

    def error_claim(
        self,
        text: str,
        source: str,
        published: float,
        variant: Variant,
        metric: str,
        unit: str,
        why: str,
    ) -> Claim:
        """A published error beside ours, the mean over seeds."""
        found = self.metric(variant, metric)
        return Claim(
            text,
            source,
            f"{published:g} {unit}",
            NOT_RUN if found is None else f"{number(found.mean)} {unit}",
            judged_at_most(None if found is None else found.mean, published),
            why,
        )

    def rise_claim(
        self,
        text: str,
        source: str,
        published: float,
        variants: tuple[Variant, Variant],
        metric: str,
        why: str,
    ) -> Claim:
        """A published ratio of one form's error to another's beside ours."""
        rise = self.ratio(variants[0], metric, variants[1])
        return Claim(
            text,
            source,
            _per_cent(published),
            NOT_RUN if rise is None else _per_cent(rise),
            judged_at_most(rise, published),
            why,
        )

    def places(self) -> dict[str, list[Any]]:
        """Where the figures were measured."""
        return places_of(
            plain["provenance"]
            for variant in self.variants()
            for plain in self.evaluations(variant).values()
        )

    def table(
        self,
        title: str,
        variants: Sequence[Variant],
        columns: Mapping[str, Callable[[Variant], str]],
        note: str = "",
    ) -> Table:
        """One row per variant; what was not run says so."""
        rows = tuple((f"`{v.name}`", *(column(v) for column in columns.values())) for v in variants)
        return Table(title, ("", *columns), rows, note)

    def cell(self, name: str, digits: int = 3) -> Callable[[Variant], str]:
        """A column: a figure over seeds, ± their standard deviation."""

        def text(variant: Variant) -> str:
            found = self.metric(variant, name)
            if found is None:
                return "–" if self.evaluations(variant) else NOT_RUN
            return found.text(digits)

        return text

    def file_bytes(self, variant: Variant) -> str:
        """A column: bytes of the model file."""
        found = self.metric(variant, "file_bytes")
        return NOT_RUN if found is None else f"{found.mean:,.0f}"

    def smaller(self, variant: Variant) -> str:
        """A column: how much smaller the quantised layers are."""
        found = self.metric(variant, "quantized_ratio")
        if found is None:
            return "–" if self.evaluations(variant) else NOT_RUN
        return f"{number(found.mean, 2)}× smaller"

    def numbers(self) -> dict[str, dict[str, Any]]:
        """All figures of all variants, for the report's JSON."""
        return {variant.name: self.figures(variant) for variant in self.variants()}

    def figures(self, variant: Variant) -> dict[str, Any]:
        """All figures of a variant."""
        return {
            "words": variant.words,
            "seeds": sorted(self.evaluations(variant)),
            **{
                name: None if (found := self.metric(variant, name)) is None else found.to_json()
                for name in METRICS
            },
        }


def _per_cent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %".replace("-", "−")


def resolved(recipe: Recipe | str) -> Recipe:
    """The recipe that a name stands for."""
    return get_recipe(recipe) if isinstance(recipe, str) else recipe
