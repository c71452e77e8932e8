"""A progress bar over the whole run, with the time left and the latest figures."""

from __future__ import annotations

from typing import Any

import lightning
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class TrainingProgress(lightning.Callback):
    """Shows epochs done, time left, and training and validation errors on the error stream."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
            refresh_per_second=2,
        )
        self._task = self._progress.add_task(
            "training", total=trainer.max_epochs, completed=trainer.current_epoch, figures=""
        )
        self._progress.start()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self._progress is None:
            return
        metrics = trainer.callback_metrics
        names = {"val_energy_mae_meV": "meV", "val_forces_mae_meV_A": "meV/Å"}
        errors = [f"{metrics[name]:.2f} {unit}" for name, unit in names.items() if name in metrics]
        figures = f"validation {', '.join(errors)}" if errors else ""
        self._progress.update(self._task, completed=trainer.current_epoch + 1, figures=figures)

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
