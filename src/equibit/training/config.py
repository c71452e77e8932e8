"""Everything a training run is told, as frozen, validated models.

A run is a YAML file of ``TrainingConfig``; ``equibit config schema`` prints its JSON schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from equibit.networks.registry import AnyNetworkConfig
from equibit.structures.errors import ConfigError


class StrictModel(BaseModel):
    """Immutable; a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], tree: Mapping[str, Any], *, source: str) -> Model:
    """A model from plain data.

    Raises:
        ConfigError: names every misspelt key and every value out of range at once.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        known = _keys(model)
        lines = [f"  {_explained(e['loc'], e['type'], e['msg'], known)}" for e in error.errors()]
        raise ConfigError(f"{source} is not valid:\n" + "\n".join(lines)) from error


def _keys(model: type[BaseModel]) -> set[str]:
    """All keys of a model and of the models inside it."""
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return {key for part in parts for key in part.get("properties", {})}


def _explained(place: tuple[int | str, ...], kind: str, message: str, known: set[str]) -> str:
    *parents, last = place
    # Between the keys, pydantic names the member of a union that it tried.
    path = ".".join(str(key) for key in (*(p for p in parents if p in known), last))
    if kind == "extra_forbidden":
        close = get_close_matches(str(last), known, n=1)
        message = "no such key" + (f"; did you mean {close[0]}?" if close else "")
    return f"{path}: {message}"


class DataConfig(StrictModel):
    """Which structures to learn from.

    Attributes:
        dataset: a name such as ``rmd17/ethanol`` or ``ethanol-pbe``, or a file of your own.
        root: folder that holds the data, else the cache is searched.
        split: which official split, where the set has several.
        units: units of an own file that does not state them, e.g. ``kcal/mol``.
        train, validation: structures to use, None for all of the split.
    """

    dataset: str
    root: Path | None = None
    split: int = 1
    units: str | None = None
    train: int | None = Field(default=None, ge=1)
    validation: int | None = Field(default=None, ge=1)


class LossConfig(StrictModel):
    """L = w_E·err(E/meV-scale) + w_F·err(F), both in eV.

    Attributes:
        energy, forces: weights of the two terms. With ``forces`` 0 energies alone are learned: labels
            of forces are not needed, and forces are neither computed nor paid for.
        kind: ``mae`` (mean |ΔE| and mean ‖ΔF_i‖) or ``mse``.
    """

    energy: float = Field(default=0.05, ge=0)
    forces: float = Field(default=1.0, ge=0)
    kind: Literal["mae", "mse"] = "mae"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.energy == self.forces == 0:
            raise ValueError("energy and forces both weigh 0: there is nothing to learn")
        return self

    @property
    def energies_alone(self) -> bool:
        """Whether forces have no part in it."""
        return self.forces == 0


class OptimizationConfig(StrictModel):
    """How the weights move.

    Attributes:
        epochs: passes over the training set.
        batch_size: structures per step (per process).
        learning_rate: peak rate, reached after ``warmup_steps`` and followed by a cosine.
        final_learning_rate: rate at the end, as a share of the peak.
        weight_decay: decoupled weight decay of AdamW.
        gradient_clip: largest norm of the gradient.
        ema_decay: decay of the weights' moving average, which is what gets validated and saved.
        patience: stop after so many validations without improvement; None never stops early.
    """

    epochs: int = Field(default=500, ge=1)
    batch_size: int = Field(default=10, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    final_learning_rate: float = Field(default=1e-3, ge=0, le=1)
    warmup_steps: int = Field(default=200, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    gradient_clip: float = Field(default=10.0, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    patience: int | None = Field(default=None, ge=1)


class RunConfig(StrictModel):
    """Where and how the run happens.

    Attributes:
        output: folder of checkpoints, logs and the final model.
        seed: seeds initialisation, shuffling and splits.
        threads: CPU threads per process.
        device: ``auto`` takes CUDA when there is one.
        devices, nodes: processes per node and nodes (DDP, also under torchrun).
        compile: one graph for energy and forces; ``auto`` compiles long runs on one molecule.
        validate_every: epochs between validations.
        checkpoint_every: epochs between resumable checkpoints.
        tensorboard: also write TensorBoard logs.
    """

    output: Path = Path("runs/training")
    seed: int = 0
    threads: int = Field(default=1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(default=1, ge=1)
    nodes: int = Field(default=1, ge=1)
    compile: Literal["auto", "on", "off"] = "auto"
    validate_every: int = Field(default=5, ge=1)
    checkpoint_every: int = Field(default=5, ge=1)
    tensorboard: bool = False


class TrainingConfig(StrictModel):
    """A training run from data to model.

    Attributes:
        start: shipped name or file of an FP32 model of the same network, trained on other data or
            at another level of theory, whose weights the run begins with; None begins at random.
    """

    data: DataConfig
    network: AnyNetworkConfig
    start: str | None = None
    loss: LossConfig = LossConfig()
    optimization: OptimizationConfig = OptimizationConfig()
    run: RunConfig = RunConfig()


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read and validate a YAML run description.

    Args:
        path: the file.
        overrides: ``section.key=value`` items that replace what the file says; values are YAML.

    Raises:
        ConfigError: missing or unreadable file, misspelt key, value out of range (each named).
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or error}; name a YAML run description"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} is empty or no mapping; expected sections such as data, network")
    for override in overrides:
        _apply_override(tree, override)
    return validate_config(tree, source=str(path))


def validate_config(tree: dict[str, Any], *, source: str) -> TrainingConfig:
    """A ``TrainingConfig`` from plain data; every mistake is named at once."""
    return validated(TrainingConfig, tree, source=f"run description {source}")


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r}: write section.key=value")
    *parents, last = key.split(".")
    for name in parents:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {name} is a value, not a section")
    try:
        tree[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML") from error


def config_schema() -> str:
    """The JSON schema of a run description."""
    return json.dumps(TrainingConfig.model_json_schema(), indent=2)
