"""Lightning's trainer, set up the same way for every kind of training."""

from __future__ import annotations

import logging
import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from equibit.training.batches import Collator, training_loader, validation_loader
from equibit.training.checkpoints import ContainerCheckpointIO
from equibit.training.config import OptimizationConfig, RunConfig
from equibit.training.history import History
from equibit.training.progress import TrainingProgress

VALIDATION_BATCH = 64


@dataclass(frozen=True)
class Epoch:
    """One that a fit kept.

    Attributes:
        weights: checkpoint with the averaged weights.
        metrics: figures, as the learning curve has them.
    """

    weights: Path
    metrics: dict[str, float]

    def load(self, module: lightning.LightningModule) -> None:
        """Give a module the averaged weights."""
        state = ContainerCheckpointIO().load_checkpoint(self.weights)
        module.load_state_dict(state["state_dict"])


@dataclass(frozen=True)
class Fit:
    """How a fit ended.

    Attributes:
        best_validation: lowest validation loss, None without any validation.
        best: the epoch of that validation, the last one without any.
        last: the last epoch.
    """

    best_validation: float | None
    best: Epoch
    last: Epoch


def fit(
    module: lightning.LightningModule,
    train: Collator,
    validation: Collator,
    *,
    optimization: OptimizationConfig,
    run: RunConfig,
    checkpoint: Path | None = None,
    callbacks: tuple[lightning.Callback, ...] = (),
    progress: bool = True,
) -> Fit:
    """Train a module, from a checkpoint on if one is given.

    Args:
        module: what is trained.
        train, validation: what it learns from and what it is judged by.
        optimization, run: how and where.
        checkpoint: of an earlier session of the same run.
        callbacks: beside those that every fit has.
        progress: show a progress bar with the time left.

    Raises:
        KeyboardInterrupt: stopped by the user; the last checkpoint is complete.
    """
    loader = training_loader(train, optimization.batch_size, run.seed)
    history = History(run.output / "metrics.csv")
    with _quiet_lightning():
        trainer, best, last = _trainer(optimization, run, (history, *callbacks), progress)
        with _interruptible(trainer):
            trainer.fit(
                module,
                loader,
                validation_loader(validation, VALIDATION_BATCH),
                ckpt_path=checkpoint,
            )
    ended = Epoch(Path(last.best_model_path), history.last())
    score = best.best_model_score
    if score is None:
        return Fit(None, ended, ended)
    return Fit(float(score), Epoch(Path(best.best_model_path), history.best()), ended)


def process_grid(run: RunConfig) -> tuple[int, int]:
    """Processes per node and nodes: what torchrun started, else what the run asks for."""
    if not torch.distributed.is_torchelastic_launched():
        return run.devices, run.nodes
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return local, world // local


def is_main_process() -> bool:
    """Whether this process is the one that writes files and prints."""
    return int(getattr(rank_zero_only, "rank", None) or 0) == 0


def last_checkpoint(output: Path) -> Path | None:
    """The checkpoint to resume from in a run's folder, if it has one."""
    path = output / "checkpoints" / "last.safetensors"
    return path if path.exists() else None


def moving_average(decay: float) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """w̄ ← d w̄ + (1 − d) w with d = min(decay, (1 + n)/(10 + n)) after n steps.

    The early steps count less, so that the average soon forgets the random start.
    """

    def update(average: Tensor, current: Tensor, steps: Any) -> Tensor:
        n = float(steps)
        return torch.lerp(average, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


def _trainer(
    optimization: OptimizationConfig,
    run: RunConfig,
    extra: tuple[lightning.Callback, ...],
    progress: bool,
) -> tuple[lightning.Trainer, ModelCheckpoint, ModelCheckpoint]:
    folder = run.output / "checkpoints"
    best = ModelCheckpoint(
        folder, filename="best", monitor="val_loss", save_top_k=1, enable_version_counter=False
    )
    # A run killed at any time goes on from here; the order of data depends on the epoch alone.
    last = ModelCheckpoint(
        folder,
        filename="last",
        save_top_k=1,
        monitor=None,
        # The last epoch of all is one of them.
        every_n_epochs=math.gcd(run.checkpoint_every, optimization.epochs),
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    for callback in (best, last):
        callback.FILE_EXTENSION = ".safetensors"
    callbacks: list[lightning.Callback] = [
        WeightAveraging(use_buffers=False, avg_fn=moving_average(optimization.ema_decay)),
        best,
        last,
        *extra,
    ]
    if optimization.patience is not None:
        callbacks.append(EarlyStopping("val_loss", patience=optimization.patience))
    if progress:
        callbacks.append(TrainingProgress())
    logger = (
        TensorBoardLogger(run.output, name=None, version="tensorboard")
        if run.tensorboard
        else False
    )
    devices, nodes = process_grid(run)
    device = run.device
    if device == "auto":  # Lightning's own choice may be a device without float64
        device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = lightning.Trainer(
        accelerator=device,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp_find_unused_parameters_true" if devices * nodes > 1 else "auto",
        max_epochs=optimization.epochs,
        gradient_clip_val=optimization.gradient_clip,
        # A run shorter than the interval is validated too, at its end.
        check_val_every_n_epoch=min(run.validate_every, optimization.epochs),
        logger=logger,
        callbacks=callbacks,
        plugins=[ContainerCheckpointIO()],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    return trainer, best, last


@contextmanager
def _interruptible(trainer: lightning.Trainer) -> Iterator[None]:
    """Pass Ctrl-C on: Lightning would end the process with status 1 and ignore further signals."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hide Lightning's advice on workers, logging and hardware, none of which applies here."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", message="Grad strides do not match")
        try:
            yield
        finally:
            logger.setLevel(level)
