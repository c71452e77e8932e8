"""Quantising a trained network: calibrate, fine-tune branch by branch, freeze, write.

Rounding moves all energies of a molecule alike, so the energy of each element is fitted anew after
calibration, and once more at the end: codes that flip back and forth in the last epochs still move it
by about a meV. The control is treated alike.

Schedule of [P1 III.C]: from the converged FP32 parent, Adam at a tenth of its rate; the first
epochs round scalars only, then vectors join. The loss may add λ·LEE, whose gradient reaches the
vector branch only.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from equibit.models.files import load_potential
from equibit.networks.base import AtomisticNetwork
from equibit.networks.potential import (
    Batch,
    energies_and_edge_gradients,
    lab_gradients,
    orient,
    rotate_edges,
)
from equibit.quantization.convert import (
    batch_energies,
    calibrate,
    freeze_,
    quantize_,
    quantizer_penalty,
    set_branch,
    step_done,
    vector_parameters,
)
from equibit.quantization.recipes import Recipe, get_recipe
from equibit.quantization.smoothing import smooth_
from equibit.structures import Structure
from equibit.training.batches import Collator, LabelledBatch, validation_loader
from equibit.training.config import LossConfig, OptimizationConfig, RunConfig, StrictModel
from equibit.training.distillation import labelled_by
from equibit.training.fit import VALIDATION_BATCH, Fit, fit, is_main_process
from equibit.training.module import (
    ForceField,
    energy_force_loss,
    label_errors,
    step_function,
)
from equibit.training.reconstruction import reconstruct
from equibit.training.run import (
    MODEL,
    TrainingResult,
    claim_folder,
    compile_step,
    energy_errors,
    finished_run,
    load_parent,
    parent_record,
    refit_shift,
    steps_per_epoch,
    write_summary,
)

CONTROL = "fp32"
JUMP = 0.05  # of a validation loss, from epoch to epoch, by codes that flip


class QuantizationConfig(StrictModel):
    """How a parent becomes a low-bit network.

    Attributes:
        parent: shipped name or file of the FP32 network.
        recipe: a recipe, or the name of one; ``fp32`` rounds nothing and is the control that gets
            the same extra epochs.
        epochs: epochs of fine-tuning; 0 calibrates and converts only (PTQ), as recipes that are
            ``post_training`` always do.
        scalar_epochs: first epochs in which only the scalar branch is rounded [P1 III.C].
        labels: ``data`` learns the labels of the structures, ``parent`` what the FP32 parent says of
            them, so that any geometries will do, unlabelled ones and those of another level too.
        lee_weight: λ of the LEE term; 0 leaves it out, as local frames need none.
        calibration: structures of the training set that fit the initial ranges.
        batch_size, learning_rate, ema_decay, loss: of the fine-tuning.
        run: where and how.
    """

    parent: str
    recipe: Recipe | str = Field(default="w4a8", validate_default=True)
    epochs: int = Field(default=20, ge=0)
    scalar_epochs: int = Field(default=5, ge=0)
    labels: Literal["data", "parent"] = "data"
    lee_weight: float = Field(default=0.0, ge=0)
    calibration: int = Field(default=128, ge=1)
    batch_size: int = Field(default=10, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    loss: LossConfig = LossConfig()
    run: RunConfig = RunConfig(output=Path("runs/quantized"), validate_every=1, checkpoint_every=1)

    @field_validator("recipe")
    @classmethod
    def _resolved(cls, recipe: Recipe | str) -> Recipe | str:
        """A name stands for what it means today, and that is what a run's folder keeps."""
        return recipe if isinstance(recipe, Recipe) or recipe == CONTROL else get_recipe(recipe)

    @property
    def resolved_recipe(self) -> Recipe | None:
        """The recipe, or None for the control."""
        return self.recipe if isinstance(self.recipe, Recipe) else None

    @property
    def tuned_epochs(self) -> int:
        """Epochs that this recipe is really fine-tuned for."""
        recipe = self.resolved_recipe
        return 0 if recipe is not None and recipe.post_training else self.epochs

    @property
    def optimization(self) -> OptimizationConfig:
        """The fine-tuning in the terms of a training."""
        return OptimizationConfig(
            epochs=max(1, self.tuned_epochs),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            final_learning_rate=0.01,
            warmup_steps=20,
            ema_decay=self.ema_decay,
        )


def fitting(config: QuantizationConfig, structures: Sequence[Structure]) -> QuantizationConfig:
    """The same for structures none of which has labels of forces: energies alone are learned."""
    if config.labels == "parent" or any(s.forces is not None for s in structures):
        return config
    energies = config.loss.model_copy(update={"energy": config.loss.energy or 1.0, "forces": 0.0})
    return config.model_copy(update={"loss": energies})


def quantize(
    config: QuantizationConfig,
    train: Sequence[Structure],
    validation: Sequence[Structure],
    *,
    data: Mapping[str, Any],
    resume: bool = True,
    progress: bool = True,
) -> TrainingResult:
    """Calibrate, fine-tune, freeze and write a low-bit network; an interrupted run goes on.

    Args:
        config: parent, recipe and schedule.
        train, validation: structures of a data set or from ``distill``.
        data: where they come from, for the model's record.
        resume: go on from the folder's last checkpoint.
        progress: show a progress bar with the time left.

    Raises:
        ModelError: the parent is already quantised, or misses an element.
        ConfigError: unknown recipe, or a folder with another run.
    """
    started = time.monotonic()
    torch.set_num_threads(config.run.threads)
    lightning.seed_everything(config.run.seed, workers=True, verbose=False)
    network = load_parent(config.parent)
    output = config.run.output
    parent = parent_record(config.parent)
    done = finished_run(config, output, parent=parent) if resume else None
    if done is not None:
        return done
    if config.labels == "parent":
        potential = load_potential(config.parent)
        train, validation = (labelled_by(potential, part) for part in (train, validation))
        data = {**data, "labels": f"the FP32 parent {parent['name']}"}
    network.train()
    recipe, epochs = config.resolved_recipe, config.tuned_epochs
    forces = not config.loss.energies_alone
    if recipe is not None:
        collator = Collator(train[: config.calibration], network, forces=forces)
        everything = range(len(collator.structures))
        if recipe.smoothing is not None:
            batches = [collator(everything).inputs]
            smooth_(network, batches, batch_energies, recipe.smoothing)
        fitting = recipe.reconstruction
        teacher = None if fitting is None else copy.deepcopy(network)
        quantize_(network, recipe)
        calibrate(network, [collator(everything).inputs])
        if fitting is not None and teacher is not None:
            reconstruct(network, teacher, train, fitting, seed=config.run.seed)
        if epochs > 0:
            refit_shift(network, train)
    training, held_out = (Collator(part, network, forces=forces) for part in (train, validation))
    best_validation: float | None = None
    metrics: dict[str, float] = {}
    if epochs == 0:
        claim_folder(config, output, resume=resume)
        finish(network, train)
    else:
        total_steps = steps_per_epoch(len(train), config.run, config.batch_size) * epochs
        module = QuantizedForceField(network, config, total_steps)
        compile_step(module, config.run, train, total_steps * config.batch_size)
        checkpoint = claim_folder(config, output, resume=resume)
        fitted = fit(
            module,
            training,
            held_out,
            optimization=config.optimization,
            run=config.run,
            checkpoint=checkpoint,
            progress=progress,
        )
        best_validation = fitted.best_validation
        network, metrics = finished(module, fitted, train, validation)
    result = TrainingResult(output / MODEL, best_validation, metrics, time.monotonic() - started)
    record = {
        **data,
        "parent": parent,
        "recipe": CONTROL if recipe is None else recipe.name,
        "epochs": epochs,
        "seed": config.run.seed,
        "train": len(train),
        "validation": len(validation),
    }
    if is_main_process():
        write_summary(output, network, result, record)
    return result


def finish(network: AtomisticNetwork, train: Sequence[Structure]) -> None:
    """Round everything for good, and move the energies of the elements once more."""
    if network.recipe is not None:
        set_branch(network, scalars=True, vectors=True)
        freeze_(network)
    refit_shift(network, train)


def finished(
    module: QuantizedForceField,
    fitted: Fit,
    train: Sequence[Structure],
    validation: Sequence[Structure],
) -> tuple[AtomisticNetwork, dict[str, float]]:
    """The network as it will be written, and its figures.

    The last epoch's, unless that of the best validation is better by more than ``JUMP`` once both
    are finished: validation jumps while codes flip, and the best of its jumps is most often an
    epoch before the rate had come down. Methods that diverge keep their best.
    """
    ends = []
    for epoch in (fitted.last, fitted.best):
        epoch.load(module)
        network = copy.deepcopy(module.network)
        finish(network, train)
        ends.append((network, epoch.metrics, mean_loss(network, validation, module.loss)))
    last, best = ends
    network, metrics, _ = best if best[2] < (1 - JUMP) * last[2] else last
    # The learning curve has energies before they were moved.
    energies = 1e3 * float(np.abs(energy_errors(network, validation)).mean())
    return network, {**metrics, "val_energy_mae_meV": energies}


def mean_loss(
    network: AtomisticNetwork, structures: Sequence[Structure], loss: LossConfig
) -> float:
    """Mean loss of structures in batches of equal size."""
    collator = Collator(structures, network, forces=not loss.energies_alone)
    function, total = step_function(loss), 0.0
    for batch in validation_loader(collator, VALIDATION_BATCH):
        energy_error, force_error = label_errors(network, batch, function)
        value = energy_force_loss(energy_error, force_error, batch.n_atoms, loss)
        total += float(value.detach()) * len(batch.energies)
    return total / len(structures)


class QuantizedForceField(ForceField):
    """``ForceField`` with the staged schedule and the LEE term."""

    def __init__(
        self, network: AtomisticNetwork, settings: QuantizationConfig, total_steps: int
    ) -> None:
        super().__init__(network, settings.loss, settings.optimization, total_steps)
        self.settings = settings
        self.quantized = network.recipe is not None

    def on_train_epoch_start(self) -> None:
        if self.quantized:
            set_branch(
                self.network,
                scalars=True,
                vectors=self.current_epoch >= self.settings.scalar_epochs,
            )

    def on_validation_start(self) -> None:
        # Judged as it will be used: everything rounded.
        if self.quantized:
            set_branch(self.network, scalars=True, vectors=True)

    def on_train_batch_end(self, *arguments: Any) -> None:
        step_done(self.network)

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        penalty = quantizer_penalty(self.network)
        if penalty is not None:
            loss = loss + penalty
        if self.settings.lee_weight and self.current_epoch >= self.settings.scalar_epochs:
            generator = torch.Generator().manual_seed(self.settings.run.seed + self.global_step)
            lee = gradient_only_to(
                equivariance_loss(self.network, batch.inputs, generator),
                list(vector_parameters(self.network)),
            )
            self.log("train_lee", lee, on_step=False, on_epoch=True, batch_size=1)
            loss = loss + self.settings.lee_weight * lee
        return loss


def equivariance_loss(
    network: AtomisticNetwork, batch: Batch, generator: torch.Generator
) -> Tensor:
    """Mean over atoms of ‖F(R·G) − R·F(G)‖ in eV/Å for one random rotation per structure."""
    graph = batch.graph
    n_structures = graph.per_structure(graph.atom_mask.double()).shape[0]
    rotations = random_rotations(n_structures, generator).to(batch.edge_vectors)
    turned = orient(network, graph, rotate_edges(graph, batch.edge_vectors, rotations))
    _, gradients = energies_and_edge_gradients(network, batch)
    _, turned_gradients = energies_and_edge_gradients(network, turned)
    expected = graph.forces(rotate_edges(graph, gradients, rotations))
    error = graph.forces(lab_gradients(turned, turned_gradients)) - expected
    norms = (error.square().sum(-1) + 1e-16).sqrt()
    return torch.where(graph.atom_mask, norms, 0.0).sum() / graph.atom_mask.sum()


def gradient_only_to(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """A scalar of value ``loss`` whose gradient reaches only ``parameters``."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    linear = sum(
        (
            (g.detach() * p).sum()
            for g, p in zip(gradients, parameters, strict=True)
            if g is not None
        ),
        start=loss.new_zeros(()),
    )
    return loss.detach() + linear - linear.detach()


def random_rotations(count: int, generator: torch.Generator) -> Tensor:
    """Haar-distributed proper rotations from normalised quaternions. Shape: [count, 3, 3]."""
    q = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    w, x, y, z = (q / q.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        torch.stack((1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)), -1),
        torch.stack((2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)), -1),
        torch.stack((2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)), -1),
    )
    return torch.stack(rows, -2)
