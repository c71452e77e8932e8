"""The learning curve as a CSV file that survives interruptions."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning

from equibit.storage.atomic import atomic_text


class History(lightning.Callback):
    """Keeps one row of figures per epoch in ``metrics.csv``.

    On resuming, rows after the checkpoint are dropped, since those epochs are run again; the file
    of an interrupted run therefore ends up equal to that of an uninterrupted one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        earlier = self._read() if trainer.current_epoch > 0 else []
        self._rows = [row for row in earlier if int(row["epoch"]) < trainer.current_epoch]

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        validated = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        figures = {
            name: f"{float(value):.9g}"
            for name, value in sorted(trainer.callback_metrics.items())
            if validated or not name.startswith("val_")
        }
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self._rows.append(
            {"epoch": trainer.current_epoch, "learning_rate": f"{rate:.6g}", **figures}
        )
        if not trainer.is_global_zero:
            return
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        with atomic_text(self.path) as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows)

    def best(self) -> dict[str, float]:
        """Figures of the epoch with the lowest validation loss."""
        validated = [row for row in self._all() if row.get("val_loss")]
        return _figures(min(validated, key=lambda row: float(row["val_loss"])))

    def last(self) -> dict[str, float]:
        """Figures of the last epoch."""
        rows = self._all()
        return _figures(rows[-1]) if rows else {}

    def _all(self) -> list[dict[str, Any]]:
        return self._rows or self._read()

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))


def _figures(row: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in row.items()
        if value not in (None, "") and name not in ("epoch", "learning_rate")
    }
