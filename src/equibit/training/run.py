"""One training run, from a validated description to a model file; resumes by default."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import yaml
from pydantic import BaseModel, ValidationError

from equibit.datasets import load_dataset
from equibit.models import resolve_model
from equibit.models.files import load_network, save_model
from equibit.networks.base import AtomisticNetwork
from equibit.networks.potential import DENSE_LIMIT, TorchPotential
from equibit.networks.registry import build_network
from equibit.storage.atomic import atomic_text
from equibit.storage.checksum import file_sha256
from equibit.storage.container import read_container
from equibit.structures import ConfigError, ModelError, Structure
from equibit.structures.structure import FloatArray
from equibit.training.batches import Collator, check_labels, fit_scale_shift, fit_shift
from equibit.training.config import DataConfig, RunConfig, TrainingConfig
from equibit.training.fit import fit, is_main_process, last_checkpoint, process_grid
from equibit.training.module import ForceField

MODEL = "model.safetensors"
COMPILE_PAYS_AFTER = (
    20_000  # structures, all epochs counted; compiling costs two to three minutes once
)


@dataclass(frozen=True)
class TrainingPlan:
    """What a run would do, for ``--dry-run``."""

    dataset: str
    train: int
    validation: int
    elements: tuple[int, ...]
    parameters: int
    epochs: int
    steps: int
    compiled: bool
    resumes_from: str | None
    output: str


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        model: the model file, holding the averaged weights of the best validation.
        best_validation: lowest validation loss, None without any validation.
        metrics: the figures of that validation, or of the last epoch without any.
        seconds: wall time of the session that finished the run.
    """

    model: Path
    best_validation: float | None
    metrics: dict[str, float]
    seconds: float


def load_training_structures(
    data: DataConfig,
) -> tuple[list[Structure], list[Structure], dict[str, Any]]:
    """Training and validation structures and a record of where they come from.

    Raises:
        ConfigError: more structures are asked for than a split has.
        DatasetError: the data cannot be found.
    """
    loaded = load_dataset(data.dataset, root=data.root, split=data.split, units=data.units)
    record = {"dataset": loaded.name, "labels": loaded.labels, "split": data.split}
    subsets = []
    for name, limit in (("train", data.train), ("validation", data.validation)):
        there = len(loaded.splits.get(name, ()))
        if limit is not None and limit > there:
            raise ConfigError(f"data.{name} is {limit}, but the split has only {there} structures")
        # Only those that are wanted are built, which matters where there are a hundred thousand.
        subsets.append(loaded.subset(name, limit))
    train, validation = subsets
    return train, validation, record


def check_elements(config: TrainingConfig, structures: Sequence[Structure]) -> None:
    """Raise ``ConfigError`` where the network does not know an element of the data."""
    present = {int(z) for s in structures for z in s.numbers}
    unknown = sorted(present - set(config.network.elements))
    if unknown:
        raise ConfigError(f"network.elements lacks {unknown}, which the data hold; add them")


def prepare_network(config: TrainingConfig, train: Sequence[Structure]) -> AtomisticNetwork:
    """A network with its energy reference fitted to the training set, at random or from a model.

    Raises:
        ModelError: no such model to start from, or a quantised one.
        ConfigError: it is another network.
    """
    lightning.seed_everything(config.run.seed, workers=True, verbose=False)
    if config.start is not None:
        return _continued(config, config.start, train)
    network = build_network(config.network)
    forces = not config.loss.energies_alone
    check_labels(train, forces=forces)
    network.set_scale_shift(*fit_scale_shift(train, config.network.elements, forces=forces))
    return network


def load_parent(parent: str) -> AtomisticNetwork:
    """The FP32 network to start from.

    Raises:
        ModelError: no such model, or one that is already quantised.
    """
    network, _ = load_network(parent)
    if network.recipe is not None:
        raise ModelError(
            f"{parent} is already quantised ({network.recipe.name}): start from its FP32 parent"
        )
    return network


def _continued(config: TrainingConfig, start: str, train: Sequence[Structure]) -> AtomisticNetwork:
    """A trained network whose energy shift is moved to the level of the training set.

    μ_Z += argmin_δ Σ_s (E_s − E(s) − Σ_Z n_sZ δ_Z)²
    """
    network = load_parent(start)
    own, wanted = network.config.model_dump(), config.network.model_dump()
    differing = [key for key in wanted if own.get(key) != wanted[key]]
    if differing:
        advice = "copy its settings, which `equibit inspect` prints"
        if "elements" in differing:
            advice += f"; network.elements must be {list(network.config.elements)}, more than the "
            advice += "data hold does no harm"
        raise ConfigError(
            f"start: {start} is another network ({', '.join(differing)} differ); {advice}"
        )
    refit_shift(network, train)
    return network.train()


def refit_shift(network: AtomisticNetwork, structures: Sequence[Structure]) -> None:
    """Move the energy of each element to where labels want it, by least squares in float64.

    μ_Z += argmin_δ Σ_s (E_s − E(s) − Σ_Z n_sZ δ_Z)²
    """
    errors = energy_errors(network, structures)
    change, _ = fit_shift(structures, errors, network.config.elements)
    shift = network.energy_shift + network.energy_shift.new_tensor(change)
    network.set_scale_shift(network.energy_scale.tolist(), shift.tolist())


def energy_errors(network: AtomisticNetwork, structures: Sequence[Structure]) -> FloatArray:
    """Label minus prediction in eV, of a network that stays as it is. Shape: [structures]."""
    trainable = [weight for weight in network.parameters() if weight.requires_grad]
    training = network.training
    # Those of one size together, or batches would be padded to the largest.
    order = np.argsort([len(structure) for structure in structures], kind="stable")
    predictions = TorchPotential(network).compute([structures[k] for k in order], forces=False)
    for weight in trainable:
        weight.requires_grad_(True)
    network.train(training)
    errors = np.array([structure.energy for structure in structures], dtype=np.float64)
    errors[order] -= [prediction.energy for prediction in predictions]
    return errors


def plan(config: TrainingConfig) -> TrainingPlan:
    """Load the data, build the network and say what ``train`` would do."""
    check_folder(config, config.run.output)
    train_set, validation, record = load_training_structures(config.data)
    check_elements(config, [*train_set, *validation])
    network = prepare_network(config, train_set)
    batch_size, epochs = config.optimization.batch_size, config.optimization.epochs
    steps = steps_per_epoch(len(train_set), config.run, batch_size) * epochs
    checkpoint = last_checkpoint(config.run.output)
    return TrainingPlan(
        dataset=f"{record['dataset']} ({record['labels']})",
        train=len(train_set),
        validation=len(validation),
        elements=config.network.elements,
        parameters=sum(p.numel() for p in network.parameters()),
        epochs=epochs,
        steps=steps,
        compiled=compile_pays(config.run, train_set, steps * batch_size),
        resumes_from=str(checkpoint) if checkpoint else None,
        output=str(config.run.output),
    )


def train(config: TrainingConfig, *, resume: bool = True, progress: bool = True) -> TrainingResult:
    """Run (or go on with) a training and write ``model.safetensors`` beside its logs.

    Args:
        config: the run.
        resume: go on from the folder's last checkpoint if there is one; else start afresh.
        progress: show a progress bar with the time left.

    Raises:
        ConfigError: the folder holds a run of another configuration, or data and network disagree.
        DatasetError: the data cannot be found or lacks labels.
    """
    started = time.monotonic()
    torch.set_num_threads(config.run.threads)
    output = config.run.output
    parent = None if config.start is None else parent_record(config.start)
    done = finished_run(config, output, parent=parent) if resume else None
    if done is not None:
        return done
    train_set, validation_set, record = load_training_structures(config.data)
    check_elements(config, [*train_set, *validation_set])
    network = prepare_network(config, train_set)
    forces = not config.loss.energies_alone
    training = Collator(train_set, network, forces=forces)
    validation = Collator(validation_set, network, forces=forces)
    optimization = config.optimization
    total_steps = (
        steps_per_epoch(len(train_set), config.run, optimization.batch_size) * optimization.epochs
    )
    checkpoint = claim_folder(config, output, resume=resume)
    module = ForceField(network, config.loss, optimization, total_steps)
    compile_step(module, config.run, train_set, total_steps * optimization.batch_size)
    fitted = fit(
        module,
        training,
        validation,
        optimization=optimization,
        run=config.run,
        checkpoint=checkpoint,
        progress=progress,
    )
    fitted.best.load(module)
    result = TrainingResult(
        model=output / MODEL,
        best_validation=fitted.best_validation,
        metrics=fitted.best.metrics,
        seconds=time.monotonic() - started,
    )
    if is_main_process():
        record |= {
            "epochs": optimization.epochs,
            "seed": config.run.seed,
            "train": len(train_set),
            "validation": len(validation_set),
        }
        if parent is not None:
            record["parent"] = parent
        write_summary(output, network, result, record)
    return result


def parent_record(name_or_path: str) -> dict[str, Any]:
    """What a run keeps of the model it begins with: name, checksum and its own training record.

    Raises:
        ModelError, FileFormatError: no such model, or a damaged file.
    """
    path = resolve_model(name_or_path)
    header = read_container(path, kind="model").header
    return {"name": header["name"], "sha256": file_sha256(path), "training": header["training"]}


def steps_per_epoch(size: int, run: RunConfig, batch_size: int) -> int:
    """Optimizer steps in one pass over ``size`` structures, per process."""
    devices, nodes = process_grid(run)
    per_process = size // (devices * nodes)
    steps = per_process // batch_size
    if steps == 0:
        raise ConfigError(
            f"the batch size is {batch_size}, but there are only {per_process} training "
            "structures per process; make it smaller"
        )
    return steps


def mixed_sizes(structures: Sequence[Structure]) -> bool:
    """Whether batches of these structures vary in shape, so that compiled code must too."""
    first = structures[0]
    return len(first) > DENSE_LIMIT or any(len(s) != len(first) or s.periodic for s in structures)


def compile_pays(run: RunConfig, structures: Sequence[Structure], work: int) -> bool:
    """Whether to compile for ``work`` structures to come, all epochs counted."""
    if run.compile == "auto":
        return not mixed_sizes(structures) and work >= COMPILE_PAYS_AFTER
    return run.compile == "on"


def compile_step(
    module: ForceField, run: RunConfig, structures: Sequence[Structure], work: int
) -> None:
    """Let a module compute in compiled code where that pays for ``work`` structures to come."""
    if compile_pays(run, structures, work):
        module.step_function = torch.compile(module.step_function, dynamic=mixed_sizes(structures))


def describe(config: BaseModel) -> dict[str, Any]:
    """A run in plain data, as it is kept in its folder."""
    return dict(json.loads(config.model_dump_json()))


def check_folder(config: BaseModel, output: Path) -> None:
    """Raise ``ConfigError`` where a folder holds progress or a model of another configuration.

    Settings that a folder of an older version does not name count as their defaults.
    """
    path = output / "config.yaml"
    if not path.exists() or not (last_checkpoint(output) or (output / MODEL).exists()):
        return
    try:
        old = describe(type(config).model_validate(yaml.safe_load(path.read_text())))
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError):
        old = {}
    if _identity(old) != _identity(describe(config)):
        raise ConfigError(
            f"{output} holds a run of another configuration ({path}); choose another folder or "
            "pass --restart"
        )


def finished_run(
    config: BaseModel, output: Path, *, parent: Mapping[str, Any] | None = None
) -> TrainingResult | None:
    """The result of a run that ended before, None where there is still something to do.

    Raises:
        ConfigError: see ``check_folder``; or the run began with another parent.
    """
    check_folder(config, output)
    try:
        summary = json.loads((output / "summary.json").read_text())
        seconds, metrics = float(summary["seconds"]), dict(summary["metrics"])
        best, earlier = summary["best_validation"], summary["training"].get("parent", {})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not (output / MODEL).exists():
        return None
    if earlier.get("sha256") != (parent or {}).get("sha256"):
        raise ConfigError(
            f"{output} holds a network made from another version of its parent; choose another "
            "folder or pass --restart"
        )
    return TrainingResult(output / MODEL, best, metrics, seconds)


def claim_folder(config: BaseModel, output: Path, *, resume: bool) -> Path | None:
    """Make a folder the run's own and return the checkpoint to go on from, if there is one.

    Without ``resume``, checkpoints of an earlier run are removed, or a kill before the first new
    one would let the old run go on.

    Raises:
        ConfigError: see ``check_folder``.
    """
    if resume:
        check_folder(config, output)
        checkpoint = last_checkpoint(output)
        if checkpoint is not None:
            return checkpoint
    if is_main_process():
        for stale in (output / "summary.json", *(output / "checkpoints").glob("*.safetensors")):
            stale.unlink(missing_ok=True)
        output.mkdir(parents=True, exist_ok=True)
        with atomic_text(output / "config.yaml") as file:
            file.write(yaml.safe_dump(describe(config), sort_keys=False))
    return None


def _identity(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change between sessions: all but threads, devices and schedules of saving."""
    run = tree.get("run")
    return {**tree, "run": run.get("seed") if isinstance(run, dict) else None}


def write_summary(
    output: Path, network: AtomisticNetwork, result: TrainingResult, record: Mapping[str, Any]
) -> None:
    """Write ``model.safetensors`` and ``summary.json`` of a finished run."""
    record = {
        **record,
        "metrics": result.metrics,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    save_model(result.model, network, name=output.name, training=record)
    summary = asdict(result) | {"model": str(result.model), "training": record}
    with atomic_text(output / "summary.json") as file:
        file.write(json.dumps(summary, indent=2) + "\n")
