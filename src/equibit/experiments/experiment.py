"""What every experiment is: settings, stages and a report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, get_origin

from pydantic import Field, ValidationInfo, field_validator

from equibit.experiments.report import Claim, Report, Table, write_report
from equibit.experiments.stages import (
    Measure,
    ProgressFactory,
    Say,
    Stage,
    mute,
    no_bars,
    run_stages,
)
from equibit.structures.errors import ConfigError
from equibit.training.config import StrictModel, validated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report"


class ExperimentConfig(StrictModel):
    """What all experiments are told.

    Attributes:
        quick: the form that takes minutes and only shows that everything works.
        seeds: one network or run each.
        runs: folder of checkpoints and models.
        results: folder of figures; the report is written beside it, under its name.
        threads: CPU threads, or None for what descriptions of runs say.
    """

    quick: bool = False
    seeds: tuple[int, ...] = (0,)
    runs: Path = Path("runs/experiment")
    results: Path = Path("results/experiment")
    threads: int | None = Field(default=None, ge=1)

    @field_validator("*", mode="before")
    @classmethod
    def _listed(cls, value: Any, info: ValidationInfo) -> Any:
        """One value, or several with commas, where a list is expected, as a command gives them."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if get_origin(annotation) is not tuple or isinstance(value, tuple | list):
            return value
        return tuple(item.strip() for item in str(value).split(",") if item.strip())


Config = TypeVar("Config", bound=ExperimentConfig)


class Experiment(ABC, Generic[Config]):
    """One table or figure, as stages that can be done one by one and a report of what there is.

    Attributes:
        name: of the experiment and its results.
        config_type: its settings.
        quick_settings: what the quick form changes in them.
        folders: places of runs or results, where the full form shares those of another experiment.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[ExperimentConfig]] = ExperimentConfig
    quick_settings: ClassVar[Mapping[str, Any]] = {}
    folders: ClassVar[Mapping[str, Path]] = {}

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def configured(cls, *, quick: bool = False, **given: Any) -> Self:
        """An experiment with these settings in place of its defaults.

        Raises:
            ConfigError: a misspelt key or a value out of range.
        """
        root = Path("quick") if quick else Path()
        folders = {
            "runs": Path("runs") / root / cls.name,
            "results": Path("results") / root / cls.name,
        }
        changes = cls.quick_settings if quick else cls.folders
        tree = {**folders, **changes, "quick": quick, **given}
        return cls(validated(cls.config_type, tree, source=f"a setting of {cls.name}"))  # type: ignore[arg-type]

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """All stages, each after those it needs.

        Raises:
            ConfigError: a description cannot be read.
        """

    @abstractmethod
    def report(self) -> Report:
        """What the finished stages found."""

    def reported(
        self,
        *,
        title: str,
        protocol: str,
        tables: Sequence[Table],
        data: Mapping[str, Any],
        places: Mapping[str, Any],
        claims: Sequence[Claim] = (),
        draw: Callable[[Figure], None] | None = None,
    ) -> Report:
        """A report of this experiment as it now stands; arguments as of ``Report``."""
        return Report(
            name=self.name,
            title=title,
            quick=self.config.quick,
            protocol=protocol,
            command=self.command(),
            seeds=self.config.seeds,
            missing=self.unfinished(),
            tables=tuple(tables),
            claims=tuple(claims),
            data=data,
            seconds=self.seconds(),
            places=places,
            draw=draw,
        )

    def records(self) -> dict[str, dict[str, Any]]:
        """What the finished measurements kept, by name."""
        return {
            stage.name: record
            for stage in self.stages()
            if isinstance(stage, Measure) and (record := stage.record()) is not None
        }

    def write(self) -> list[Path]:
        """Write the report and return the files."""
        return write_report(self.report(), self.config.results)

    def kinds(self) -> tuple[str, ...]:
        """Kinds of its stages, in the order in which they first occur, and the report."""
        return (*dict.fromkeys(stage.kind for stage in self.stages()), REPORT)

    def selected(self, kinds: Sequence[str] | None) -> list[Stage]:
        """Stages of these kinds; all without.

        Raises:
            ConfigError: no stage is of such a kind.
        """
        known = self.kinds()
        unknown = [kind for kind in kinds or () if kind not in known]
        if unknown:
            raise ConfigError(f"--stages: no {unknown[0]!r}; known are {', '.join(known)}")
        return [stage for stage in self.stages() if kinds is None or stage.kind in kinds]

    def run(
        self,
        kinds: Sequence[str] | None = None,
        *,
        say: Say = mute,
        progress: ProgressFactory = no_bars,
    ) -> list[Path]:
        """Do what is missing of these kinds of stages and write the report, if it is among them.

        Returns:
            The files of the report.

        Raises:
            ConfigError: an unknown kind, or a folder that holds something else.
            EquibitError: what a stage raised; finished stages are kept.
        """
        run_stages(self.selected(kinds), say=say, progress=progress)
        return self.write() if kinds is None or REPORT in kinds else []

    def command(self) -> str:
        """The command that does all this."""
        config, plain = self.config, type(self).configured(quick=self.config.quick).config
        words = [f"equibit reproduce {self.name}"]
        if config.quick:
            words.append("--quick")
        for key in type(config).model_fields:
            value = getattr(config, key)
            if value == getattr(plain, key):
                continue
            if key in ("seeds", "threads", "runs", "results"):
                words.append(f"--{key} {_word(value)}")
            else:
                words.append(f"{key}={_word(value)}")
        return " ".join(words)

    def unfinished(self) -> tuple[str, ...]:
        """Names of the stages that are not done."""
        return tuple(f"{s.kind} {s.name}" for s in self.stages() if not s.done)

    def seconds(self) -> float:
        """Wall time of the finished stages."""
        return sum(s.seconds_taken() or 0.0 for s in self.stages() if s.done)


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
