"""An evaluation as tables for the terminal."""

from __future__ import annotations

from rich.table import Table

from equibit.evaluation.evaluate import Evaluation
from equibit.evaluation.summary import (
    byte_count,
    compact,
    headline_rows,
    label_note,
    number,
    symmetry_rows,
)


def evaluation_tables(evaluation: Evaluation) -> list[Table]:
    """Accuracy, distance to the parent, symmetry, size and latency, as far as measured."""
    tables = [_accuracy(evaluation)]
    if evaluation.model.errors and evaluation.model.errors.forces_by_element:
        tables.append(_elements(evaluation))
    if evaluation.distance_to_parent:
        tables.append(_distance(evaluation))
    if evaluation.equivariance:
        tables.append(_symmetry(evaluation))
    if evaluation.size:
        tables.append(_size(evaluation))
    if evaluation.latency:
        tables.append(_latency(evaluation))
    return tables


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index > 0)
    return table


def _accuracy(ev: Evaluation) -> Table:
    data = ev.data
    title = f"{ev.model.info.name} on {data.dataset}"
    if data.subset:
        title += f", {data.subset}"
    title += f" ({data.n_structures} structures)"
    columns = ["", "model", *(["parent", "change"] if ev.parent else [])]
    table = _table(title, *columns)
    for row in headline_rows(ev):
        label = f"{row.label} ({row.unit})" if row.unit else row.label
        cells = [label, row.model, *([row.parent, row.change] if ev.parent else [])]
        table.add_row(*cells)
    table.caption, table.caption_justify = label_note(ev) or None, "left"
    return table


def _elements(ev: Evaluation) -> Table:
    assert ev.model.errors is not None
    table = _table("Force error per element (meV/Å)", "element", "atoms", "MAE", "RMSE", "largest")
    for element, errors in ev.model.errors.forces_by_element.items():
        table.add_row(
            element,
            str(errors.count // 3),
            number(errors.mae),
            number(errors.rmse),
            number(errors.maximum),
        )
    return table


def _distance(ev: Evaluation) -> Table:
    assert ev.distance_to_parent is not None
    table = _table("Distance to the parent", "", "MAE", "RMSE", "largest")
    for label, errors in (
        ("energy (meV)", ev.distance_to_parent.energy),
        ("force components (meV/Å)", ev.distance_to_parent.forces),
    ):
        if errors:
            table.add_row(label, number(errors.mae), number(errors.rmse), number(errors.maximum))
    return table


def _symmetry(ev: Evaluation) -> Table:
    assert ev.equivariance is not None
    kind = "rotations and reflections" if ev.equivariance.improper else "rotations"
    table = _table(
        f"Local equivariance error (meV/Å), {ev.equivariance.n_rotations} {kind} of "
        f"{ev.equivariance.n_structures} structures",
        *("", "mean", "median", "rms", "largest", "|ΔE| (meV)"),
    )
    for label, result in symmetry_rows(ev):
        lee = result.forces
        table.add_row(
            label,
            *map(compact, (lee.mean, lee.median, lee.rms, lee.maximum, result.energy.mean)),
        )
    return table


def _size(ev: Evaluation) -> Table:
    assert ev.size is not None
    table = _table("Size", "", "bytes", "in FP32", "ratio")
    size = ev.size
    quantized = [part for part in size.parts if part.quantized]
    if quantized and size.quantized_ratio:
        table.add_row(
            "quantised layers",
            byte_count(sum(part.bytes for part in quantized)),
            byte_count(sum(part.fp32_bytes for part in quantized)),
            f"{number(size.quantized_ratio)}×",
        )
    table.add_row(
        "whole file",
        byte_count(size.file_bytes),
        byte_count(size.fp32_file_bytes),
        f"{number(size.file_ratio)}×",
    )
    return table


def _latency(ev: Evaluation) -> Table:
    assert ev.latency is not None
    table = _table(
        f"Latency, {ev.latency.cpu}, {ev.latency.threads} thread(s)",
        *("", "structures", "ms per call", "10–90 %", "ms per structure"),
    )
    for timing in ev.latency.timings:
        table.add_row(
            timing.name,
            str(timing.batch_size),
            number(timing.median),
            f"{number(timing.p10)}–{number(timing.p90)}",
            number(timing.per_structure),
        )
    return table
