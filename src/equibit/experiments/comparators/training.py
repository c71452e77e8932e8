"""Training a comparator with a budget of processor time, loss and data those of our own networks.

AdamW after a warm-up and a cosine, clipped gradients, a moving average that is validated and kept.
The number of epochs is what the budget holds, from a few timed steps; it is settled once and kept
with the run, so that an interrupted run goes on as planned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from equibit.evaluation.batches import Progress, silent
from equibit.experiments.comparators.networks import (
    ForeignNetwork,
    ForeignPotential,
    Molecules,
    energies_and_forces,
)
from equibit.experiments.comparators.registry import find_comparator
from equibit.storage.container import read_container, write_container
from equibit.structures.errors import ConfigError, FileFormatError
from equibit.structures.neighbors import neighbor_list
from equibit.structures.structure import Structure
from equibit.training.batches import check_labels, fit_scale_shift
from equibit.training.checkpoints import ContainerCheckpointIO
from equibit.training.config import LossConfig, StrictModel
from equibit.training.fit import moving_average
from equibit.training.module import energy_force_loss, warmup_cosine
from equibit.training.run import MODEL

_TIMED_STEPS = 5
_SAVE_EVERY = 60.0  # seconds
_VALIDATION_BATCH = 25


class ComparatorConfig(StrictModel):
    """How a comparator is trained.

    Attributes:
        comparator: name of one.
        core_minutes: processor time that training may take.
        epochs: passes over the training set instead, where they are to be settled beforehand.
        batch_size: structures per step.
        learning_rate: peak rate, or None for the comparator's own.
        loss: weights of energies and forces.
        ema_decay: of the moving average.
        quick: take the small form of the network.
        seed: of everything random.
        threads: CPU threads.
        device: ``cpu`` or ``cuda``.
    """

    comparator: str
    core_minutes: float = Field(default=60.0, gt=0)
    epochs: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=10, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    loss: LossConfig = LossConfig()
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    quick: bool = False
    seed: int = 0
    threads: int = Field(default=1, ge=1)
    device: str = "cpu"


@dataclass(frozen=True)
class TrainedComparator:
    """A trained comparator.

    Attributes:
        model: its file.
        potential: loaded from it.
        record: settings, epochs, processor minutes spent, numbers of structures.
    """

    model: Path
    potential: ForeignPotential
    record: Mapping[str, Any]


@dataclass
class _State:
    """What an interrupted run needs to go on."""

    epoch: int
    epochs: int
    core_seconds: float
    best_loss: float
    average: dict[str, Tensor]
    best: dict[str, Tensor]


def mean_neighbors(structures: Sequence[Structure], cutoff: float) -> float:
    """Edges per atom within a cutoff in Å, over at most a hundred structures."""
    some = structures[:: max(1, len(structures) // 100)]
    edges = sum(len(neighbor_list(structure, cutoff)) for structure in some)
    return edges / sum(len(structure) for structure in some)


def train_comparator(
    config: ComparatorConfig,
    train: Sequence[Structure],
    validation: Sequence[Structure],
    output: Path,
    *,
    data: Mapping[str, Any],
    progress: Progress = silent,
) -> TrainedComparator:
    """Train, or go on, or load what is there.

    Args:
        config: which network, and how.
        train, validation: labelled molecules.
        output: folder of checkpoint and model.
        data: where the structures come from, for the record.
        progress: told after each epoch.

    Raises:
        ModelError: the package is not installed.
        ConfigError: the folder holds another run, or the training diverged.
        DatasetError: a structure without labels.
    """
    settings = config.model_dump(mode="json")
    done = _finished(output / MODEL, settings)
    if done is not None:
        return done
    check_labels([*train, *validation])
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    comparator = find_comparator(config.comparator)
    elements = tuple(sorted({int(z) for s in (*train, *validation) for z in s.numbers}))
    neighbors = mean_neighbors(train, 5.0)
    network = comparator.make(elements, neighbors, quick=config.quick)
    scale, shift = fit_scale_shift(train, elements)
    network.energy_scale.copy_(torch.tensor(scale))
    network.energy_shift.copy_(torch.tensor(shift))
    network.to(config.device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate or comparator.learning_rate, weight_decay=0.0
    )
    output.mkdir(parents=True, exist_ok=True)
    state = _resume(output / "checkpoint.safetensors", settings, network, optimizer)
    if state is None:
        state = _begin(config, network, optimizer, train)
    _fit(config, settings, network, optimizer, state, train, validation, output, progress)
    network.load_state_dict(state.best)
    record = {
        **data,
        "settings": settings,
        "elements": list(elements),
        "neighbors": neighbors,
        "epochs": state.epochs,
        "core_minutes": state.core_seconds / 60,
        "train": len(train),
        "validation": len(validation),
        "validation_loss": state.best_loss,
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    tensors = {key: value.cpu().numpy() for key, value in network.state_dict().items()}
    write_container(output / MODEL, tensors, {"kind": "checkpoint", "comparator": record})
    return load_comparator(output / MODEL)


def load_comparator(path: Path) -> TrainedComparator:
    """A trained comparator from its file.

    Raises:
        FileFormatError: damaged, or no comparator.
        ModelError: its package is not installed.
    """
    container = read_container(path, kind="checkpoint")
    try:
        record = container.header["comparator"]
        config = ComparatorConfig.model_validate(record["settings"])
        elements, neighbors = record["elements"], record["neighbors"]
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} holds no trained comparator") from error
    network = find_comparator(config.comparator).make(elements, neighbors, quick=config.quick)
    try:
        network.load_state_dict({k: torch.from_numpy(v) for k, v in container.tensors.items()})
    except RuntimeError as error:
        raise FileFormatError(
            f"{path} was written with another version of {config.comparator}; train it again"
        ) from error
    return TrainedComparator(path, ForeignPotential(network, config.comparator), record)


def _finished(path: Path, settings: Mapping[str, Any]) -> TrainedComparator | None:
    if not path.is_file():
        return None
    made = load_comparator(path)
    if made.record["settings"] != settings:
        raise ConfigError(
            f"{path.parent} holds a run with other settings; choose another folder or remove it"
        )
    return made


def _begin(
    config: ComparatorConfig,
    network: ForeignNetwork,
    optimizer: torch.optim.Optimizer,
    train: Sequence[Structure],
) -> _State:
    """A new run; its epochs fill the budget, and the steps that were timed leave no trace."""
    weights = {key: value.detach().clone() for key, value in network.state_dict().items()}
    epochs, spent = config.epochs, 0.0
    if epochs is None:
        batch = list(range(min(config.batch_size, len(train))))
        inputs = _labelled(network, train, batch)
        _step(config, network, optimizer, *inputs)
        begin = time.process_time()
        for _ in range(_TIMED_STEPS):
            _step(config, network, optimizer, *_labelled(network, train, batch))
        spent = time.process_time() - begin
        per_epoch = spent / _TIMED_STEPS * max(1, len(train) // len(batch))
        epochs = max(1, int(60 * config.core_minutes / per_epoch))
        network.load_state_dict(weights)
        optimizer.state.clear()
    return _State(0, epochs, spent, math.inf, dict(weights), dict(weights))


def _fit(
    config: ComparatorConfig,
    settings: Mapping[str, Any],
    network: ForeignNetwork,
    optimizer: torch.optim.Optimizer,
    state: _State,
    train: Sequence[Structure],
    validation: Sequence[Structure],
    output: Path,
    progress: Progress,
) -> None:
    size = min(config.batch_size, len(train))
    per_epoch = len(train) // size
    peak = config.learning_rate or find_comparator(config.comparator).learning_rate
    average = moving_average(config.ema_decay)
    saved = time.monotonic()
    for epoch in range(state.epoch, state.epochs):
        begin = time.process_time()
        order = np.random.default_rng((config.seed, epoch)).permutation(len(train))
        network.train()
        for number in range(per_epoch):
            step = epoch * per_epoch + number
            share = warmup_cosine(
                step,
                warmup=min(200, per_epoch),
                total=state.epochs * per_epoch,
                final=1e-3,
            )
            optimizer.param_groups[0]["lr"] = share * peak
            chosen = order[number * size : (number + 1) * size].tolist()
            loss = _step(config, network, optimizer, *_labelled(network, train, chosen))
            if not math.isfinite(loss):
                raise ConfigError(
                    f"the training of {config.comparator} diverged in epoch {epoch}; lower its "
                    "learning rate"
                )
            for key, value in network.state_dict().items():
                if value.is_floating_point():
                    state.average[key] = average(state.average[key], value, step)
        state.epoch = epoch + 1
        if state.epoch % max(1, state.epochs // 100) == 0 or state.epoch == state.epochs:
            current = {key: value.clone() for key, value in network.state_dict().items()}
            network.load_state_dict(state.average)
            loss = _validate(config, network, validation)
            if loss < state.best_loss:
                state.best_loss, state.best = loss, dict(state.average)
            network.load_state_dict(current)
        state.core_seconds += time.process_time() - begin
        progress(config.comparator, state.epoch, state.epochs)
        if time.monotonic() - saved > _SAVE_EVERY or state.epoch == state.epochs:
            _save(output / "checkpoint.safetensors", settings, network, optimizer, state)
            saved = time.monotonic()


def _labelled(
    network: ForeignNetwork, structures: Sequence[Structure], chosen: Sequence[int]
) -> tuple[Molecules, Tensor, Tensor]:
    own = [structures[k] for k in chosen]
    molecules = network.batch(own)
    device = molecules.positions.device
    energies = torch.tensor([float(s.energy or 0.0) for s in own], dtype=torch.float64)
    forces = torch.from_numpy(np.concatenate([np.asarray(s.forces) for s in own]))
    return molecules, energies.to(device), forces.to(device)


def _step(
    config: ComparatorConfig,
    network: ForeignNetwork,
    optimizer: torch.optim.Optimizer,
    molecules: Molecules,
    energies: Tensor,
    forces: Tensor,
) -> float:
    optimizer.zero_grad()
    loss = _loss(config, network, molecules, energies, forces, create_graph=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
    optimizer.step()
    return float(loss.detach())


def _loss(
    config: ComparatorConfig,
    network: ForeignNetwork,
    molecules: Molecules,
    energies: Tensor,
    forces: Tensor,
    *,
    create_graph: bool,
) -> Tensor:
    atomic, predicted = energies_and_forces(network, molecules, create_graph=create_graph)
    n_atoms = torch.bincount(molecules.structures, minlength=molecules.n_structures)
    return energy_force_loss(
        molecules.per_structure(atomic) - energies, predicted - forces, n_atoms, config.loss
    )


def _validate(
    config: ComparatorConfig, network: ForeignNetwork, structures: Sequence[Structure]
) -> float:
    network.eval()
    total = 0.0
    for first in range(0, len(structures), _VALIDATION_BATCH):
        chosen = range(first, min(first + _VALIDATION_BATCH, len(structures)))
        inputs = _labelled(network, structures, chosen)
        total += len(chosen) * float(_loss(config, network, *inputs, create_graph=False).detach())
    return total / len(structures)


def _save(
    path: Path,
    settings: Mapping[str, Any],
    network: ForeignNetwork,
    optimizer: torch.optim.Optimizer,
    state: _State,
) -> None:
    ContainerCheckpointIO().save_checkpoint(
        {
            "settings": dict(settings),
            "network": dict(network.state_dict()),
            "optimizer": optimizer.state_dict(),
            **vars(state),
        },
        path,
    )


def _resume(
    path: Path,
    settings: Mapping[str, Any],
    network: ForeignNetwork,
    optimizer: torch.optim.Optimizer,
) -> _State | None:
    if not path.is_file():
        return None
    stored = ContainerCheckpointIO().load_checkpoint(path)
    if stored.pop("settings") != settings:
        raise ConfigError(
            f"{path.parent} holds a run with other settings; choose another folder or remove it"
        )
    network.load_state_dict(stored.pop("network"))
    optimizer.load_state_dict(stored.pop("optimizer"))
    device = network.energy_scale.device
    for name in ("average", "best"):
        stored[name] = {key: value.to(device) for key, value in stored[name].items()}
    return _State(**stored)
