"""An evaluation in words and numbers: what the terminal and the report both say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from equibit.evaluation.equivariance import Equivariance
from equibit.evaluation.evaluate import Evaluation
from equibit.evaluation.metrics import Comparison
from equibit.evaluation.plots import power_of_ten


@dataclass(frozen=True)
class Row:
    """A line of the headline table; ``change`` compares model and parent."""

    label: str
    unit: str
    model: str
    parent: str
    change: str


def number(value: float | None, digits: int = 3) -> str:
    """``value`` with so many significant digits, powers of ten written as such."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent < 6:
        decimals = digits - 1 - exponent
        text = f"{round(value, decimals):.{max(0, decimals)}f}"
    else:
        mantissa = value / 10.0**exponent
        text = f"{mantissa:.{digits - 1}f} × {power_of_ten(exponent)}"
    return text.replace("-", "−")


def compact(value: float | None) -> str:
    """As :func:`number`, powers of ten as in 1.7e-12, which terminals have room for."""
    tiny = value is not None and value != 0 and math.isfinite(value) and abs(value) < 1e-4
    return f"{value:.1e}" if tiny else number(value)


def byte_count(value: float) -> str:
    """Bytes with a decimal prefix."""
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{number(value / size)} {unit}"
    return f"{value:.0f} B"


def ratio(value: float, reference: float) -> str:
    """Relative change in per cent, or a factor where that reads better."""
    if reference == 0 or not math.isfinite(value / reference):
        return "–"
    change = value / reference
    if change > 2 or change < 1 / 2:
        return f"{number(change, 2)}×"
    return f"{100 * (change - 1):+.1f} %".replace("-", "−")


def label_note(ev: Evaluation) -> str:
    """What the data lacks, so that nobody looks for figures that cannot be; else empty."""
    if ev.data.has_energies and ev.data.has_forces:
        return ""
    missing = "labels"
    if ev.data.has_energies:
        missing = "labels of forces"
    elif ev.data.has_forces:
        missing = "labels of energies"
    return f"The data carries no {missing}; net force, torque and symmetry need none."


def headline_rows(ev: Evaluation) -> list[Row]:
    """Errors and conservation of the model, beside its parent."""

    def row(label: str, unit: str, model: float | None, parent: float | None) -> Row:
        change = "–" if model is None or parent is None else ratio(model, parent)
        return Row(label, unit, number(model), number(parent), change)

    def pick(result: Any, *names: str) -> float | None:
        for name in names:
            result = getattr(result, name, None)
        return None if result is None else float(result)

    model, parent = ev.model, ev.parent
    rows = []
    if model.errors:
        rows += [
            row(label, unit, pick(model, "errors", *path), pick(parent, "errors", *path))
            for label, unit, path in (
                ("Energy MAE", "meV", ("energy", "mae")),
                ("Energy RMSE", "meV", ("energy", "rmse")),
                ("Energy MAE, mean error removed", "meV", ("energy_centred", "mae")),
                ("Energy MAE per atom", "meV/atom", ("energy_per_atom", "mae")),
                ("Force MAE, components", "meV/Å", ("forces", "mae")),
                ("Force RMSE, components", "meV/Å", ("forces", "rmse")),
                ("Force error, largest component", "meV/Å", ("forces", "maximum")),
                ("1 − cos of forces, mean", "", ("cosine", "mean")),
            )
            if pick(model, "errors", *path) is not None
        ]
        if rows and rows[-1].label.startswith("1 − cos"):
            rows[-1] = row(
                rows[-1].label,
                "",
                _angle_loss(model.errors),
                _angle_loss(parent.errors) if parent else None,
            )
    rows += [
        row(label, unit, pick(model, "net", *path), pick(parent, "net", *path))
        for label, unit, path in (
            ("Net force, mean", "meV/Å", ("force", "mean")),
            ("Net torque, mean", "meV", ("torque", "mean")),
        )
        if pick(model, "net", *path) is not None
    ]
    return rows


def _angle_loss(errors: Comparison | None) -> float | None:
    return None if errors is None or errors.cosine is None else 1.0 - errors.cosine.mean


def symmetry_rows(ev: Evaluation) -> list[tuple[str, Equivariance]]:
    """Label and LEE of the model and of each floor."""
    if ev.equivariance is None:
        return []
    floors = [
        (label if "FP" in label else f"{label}, {_arithmetic(result)}", result)
        for label, result in ev.floors.items()
    ]
    return [(f"model, {_arithmetic(ev.equivariance)}", ev.equivariance), *floors]


def _arithmetic(result: Equivariance) -> str:
    return {"float32": "FP32 arithmetic", "float64": "FP64 arithmetic"}.get(
        result.dtype, result.dtype
    )
