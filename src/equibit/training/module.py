"""The training step, for Lightning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor

from equibit.networks.base import AtomisticNetwork
from equibit.networks.potential import Batch, atomic_energies, energies_and_edge_gradients
from equibit.structures import ConfigError
from equibit.training.batches import LabelledBatch
from equibit.training.config import LossConfig, OptimizationConfig

StepFunction = Callable[[AtomisticNetwork, Batch], tuple[Tensor, Tensor | None]]


def energies_alone(network: AtomisticNetwork, batch: Batch) -> tuple[Tensor, None]:
    """Atomic energies, and no gradients: nothing is kept for a second differentiation."""
    return atomic_energies(network, batch, batch.edge_vectors), None


def step_function(loss: LossConfig) -> StepFunction:
    """What a loss needs of a batch: atomic energies, and ∂E/∂r_ij unless energies alone are learned."""
    return energies_alone if loss.energies_alone else energies_and_edge_gradients


def label_errors(
    network: AtomisticNetwork, batch: LabelledBatch, function: StepFunction
) -> tuple[Tensor, Tensor | None]:
    """Energy errors in eV and force errors in eV/Å, or None without gradients or labels of forces.

    Shape: → [structures], [*atoms, 3].
    """
    atomic, gradients = function(network, batch.inputs)
    graph = batch.inputs.graph
    energy_error = graph.per_structure(atomic) - batch.energies
    if gradients is None or batch.forces is None:
        return energy_error, None
    return energy_error, graph.forces(gradients) - batch.forces


def energy_force_loss(
    energy_error: Tensor, force_error: Tensor | None, n_atoms: Tensor, loss: LossConfig
) -> Tensor:
    """L = w_E·mean_s e_s + w_F·mean_i f_i with e = |ΔE|, f = ‖ΔF‖ (mae) or squares (mse).

    Shape: energy_error [structures] in eV; force_error [*atoms, 3] in eV/Å, 0 on padding, or None
    where energies alone are learned.
    """
    energy = energy_error.abs() if loss.kind == "mae" else energy_error.square()
    value = loss.energy * energy.mean()
    if force_error is None:
        return value
    per_atom = force_error.square().sum(-1)
    if loss.kind == "mae":
        # The floor keeps the norm differentiable where a force is met exactly.
        per_atom = (per_atom + 1e-16).sqrt()
    return value + loss.forces * per_atom.sum() / n_atoms.sum()


def warmup_cosine(step: int, *, warmup: int, total: int, final: float) -> float:
    """Share of the peak rate: linear warm-up, then a cosine down to ``final``."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total))))
    return rise * (final + (1 - final) * fall)


class ForceField(lightning.LightningModule):
    """Fits energies and forces of a network, or its energies alone.

    Attributes:
        network: what is trained.
        step_function: what the loss needs of a batch; the compiled one when training compiles.
    """

    def __init__(
        self,
        network: AtomisticNetwork,
        loss: LossConfig,
        optimization: OptimizationConfig,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.optimization = optimization
        self.total_steps = total_steps
        self.step_function = step_function(loss)

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        energy_error, force_error = label_errors(self.network, batch, self.step_function)
        loss = energy_force_loss(energy_error, force_error, batch.n_atoms, self.loss)
        self.log(
            "train_loss",
            loss,
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            batch_size=len(batch.energies),
        )
        return loss

    def on_train_epoch_end(self) -> None:
        self._stop_if_diverged("train_loss")

    def on_validation_epoch_end(self) -> None:
        self._stop_if_diverged("val_loss")

    def _stop_if_diverged(self, name: str) -> None:
        """Stop before a checkpoint is spoilt: raise ``ConfigError`` where a loss is not finite."""
        loss = float(self.trainer.callback_metrics[name])
        if not math.isfinite(loss):
            raise ConfigError(
                f"the training diverged in epoch {self.current_epoch}: its loss is {loss}; lower "
                "optimization.learning_rate or optimization.gradient_clip, or look for impossible "
                "labels with `equibit data inspect`"
            )

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        # Lightning validates under no_grad; forces need a gradient of their own.
        with torch.set_grad_enabled(not self.loss.energies_alone):
            errors = label_errors(self.network, batch, step_function(self.loss))
        energy_error, force_error = (None if e is None else e.detach() for e in errors)
        assert energy_error is not None
        values = {"val_energy_mae_meV": (1e3 * energy_error.abs().mean(), len(batch.energies))}
        if force_error is not None:
            n_atoms = int(batch.n_atoms.sum())
            mae = 1e3 * force_error.abs().sum() / (3 * n_atoms)
            values["val_forces_mae_meV_A"] = (mae, n_atoms)
        for name, (value, weight) in values.items():
            self.log(name, value, batch_size=weight, sync_dist=True)
        loss = energy_force_loss(energy_error, force_error, batch.n_atoms, self.loss)
        self.log("val_loss", loss, batch_size=len(batch.energies), sync_dist=True)

    def configure_optimizers(self) -> Any:
        settings = self.optimization
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=True,  # a tenth less time a step than one call for each parameter
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: warmup_cosine(
                step,
                warmup=settings.warmup_steps,
                total=self.total_steps,
                final=settings.final_learning_rate,
            ),
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def transfer_batch_to_device(
        self, batch: LabelledBatch, device: torch.device, dataloader_idx: int
    ) -> LabelledBatch:
        return _to_device(batch, device)


def _to_device(value: Any, device: torch.device) -> Any:
    """A copy of a batch, its graph included, on another device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if hasattr(value, "__dataclass_fields__"):
        if device.type == "cpu":
            return value
        moved = {
            name: _to_device(getattr(value, name), device) for name in value.__dataclass_fields__
        }
        return type(value)(**moved)
    return value
