"""One self-contained HTML page that shows an evaluation."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from equibit.evaluation.equivariance import Equivariance
from equibit.evaluation.evaluate import Evaluation
from equibit.evaluation.metrics import MEV_PER_EV, Answers
from equibit.evaluation.plots import (
    Axis,
    Bar,
    Figure,
    bar_chart,
    padded,
    sparkbars,
)
from equibit.evaluation.size import CodeUse, ModelSize, PartSize
from equibit.evaluation.summary import (
    byte_count,
    headline_rows,
    label_note,
    number,
    ratio,
    symmetry_rows,
)
from equibit.storage import atomic_text
from equibit.structures.errors import EquibitError
from equibit.structures.structure import FloatArray

_LAYER_INDEX = re.compile(r"\.\d+")
MAX_SCATTER = 1500
MAX_PARTS = 14
MAX_CODE_PLOTS = 12  # of weights, and as many of activations
WORST = 5


@dataclass(frozen=True)
class Card:
    """A headline figure: what, how much, and beside what it stands."""

    label: str
    value: str
    unit: str
    note: str


@dataclass(frozen=True)
class Legend:
    series: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A figure with its heading, legend and caption; ``svgs`` are stacked."""

    title: str
    svgs: Sequence[str]
    legend: Sequence[Legend] = ()
    caption: str = ""
    wide: bool = False


def write_report(evaluation: Evaluation, path: str | os.PathLike[str]) -> None:
    """Write the report of an evaluation as one HTML file that needs nothing else.

    Raises:
        EquibitError: jinja2 is not installed.
        WriteError: the file cannot be written; an older one stays.
    """
    html = render_report(evaluation)
    with atomic_text(path) as file:
        file.write(html)


def render_report(evaluation: Evaluation) -> str:
    """The HTML text of the report.

    Raises:
        EquibitError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise EquibitError('the HTML report needs jinja2: pip install "equibit[report]"') from error
    folder = resources.files("equibit.evaluation") / "templates"
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    environment.filters["bytes"] = byte_count
    shown_codes = _shown_codes(evaluation.codes)
    template = environment.from_string((folder / "report.html").read_text(encoding="utf-8"))
    return template.render(
        style=(folder / "report.css").read_text(encoding="utf-8"),
        evaluation=evaluation,
        cards=_cards(evaluation),
        rows=headline_rows(evaluation),
        label_note=label_note(evaluation),
        symmetry=_symmetry_plot(evaluation),
        symmetry_results=_symmetry_results(evaluation),
        accuracy=_accuracy_plots(evaluation),
        worst=_worst(evaluation),
        size_plot=_size_plot(evaluation.size),
        codes=[(use, _code_plot(use)) for use in shown_codes],
        more_codes=len(evaluation.codes) - len(shown_codes),
        latency_plot=_latency_plot(evaluation),
    )


def _cards(ev: Evaluation) -> list[Card]:
    cards: list[Card] = []
    errors = ev.model.errors
    parent = ev.parent.errors if ev.parent else None
    if errors and errors.forces:
        reference = parent.forces.mae if parent and parent.forces else None
        cards.append(_error_card("Force MAE", errors.forces.mae, "meV/Å", reference))
    if errors and errors.energy:
        reference = parent.energy.mae if parent and parent.energy else None
        cards.append(_error_card("Energy MAE", errors.energy.mae, "meV", reference))
    if not errors and ev.distance_to_parent and ev.distance_to_parent.forces:
        cards.append(
            Card(
                "Forces, distance to parent",
                number(ev.distance_to_parent.forces.mae),
                "meV/Å",
                "mean absolute difference of components; the data has no labels",
            )
        )
    if ev.equivariance:
        lee = ev.equivariance.forces
        cards.append(
            Card(
                "Equivariance error",
                number(lee.median, 2),
                "meV/Å",
                f"median LEE; mean {number(lee.mean, 2)}, largest {number(lee.maximum, 2)}",
            )
        )
    if ev.size:
        note = f"{byte_count(ev.size.file_bytes)} against {byte_count(ev.size.fp32_file_bytes)}"
        if ev.size.quantized_ratio:
            note += f"; quantised layers {number(ev.size.quantized_ratio, 2)}×"
        cards.append(Card("Smaller than FP32", number(ev.size.file_ratio, 2), "×", note))
    if ev.latency:
        single = {t.name: t for t in ev.latency.timings if t.batch_size == 1}
        if "model" in single:
            note = "one structure, energy and forces"
            if "parent" in single:
                note += f"; parent {number(single['parent'].median)} ms"
            cards.append(Card("Latency", number(single["model"].median), "ms", note))
    return cards


def _error_card(label: str, value: float, unit: str, reference: float | None) -> Card:
    note = "against the labels"
    if reference is not None:
        note = f"FP32 parent {number(reference)} ({ratio(value, reference)})"
    return Card(label, number(value), unit, note)


FLOOR_SERIES = ("parent", "floor-a", "floor-b", "floor-c", "floor-d")


def _symmetry_results(ev: Evaluation) -> list[tuple[str, str, Equivariance]]:
    """Series, label and result of the model and each floor."""
    series = ("model", *(FLOOR_SERIES[k % len(FLOOR_SERIES)] for k in range(len(ev.floors))))
    return [(name, *row) for name, row in zip(series, symmetry_rows(ev), strict=False)]


def _symmetry_plot(ev: Evaluation) -> Plot | None:
    results = _symmetry_results(ev)
    occupied = [r.histogram.counts.nonzero()[0] for _, _, r in results]
    occupied = [bins for bins in occupied if bins.size]
    if not occupied:
        return None
    edges = results[0][2].histogram.edges
    first = max(0, min(bins[0] for bins in occupied) - 4)
    last = min(edges.size - 1, max(bins[-1] for bins in occupied) + 5)
    shares = [100.0 * r.histogram.counts / max(1, r.forces.count) for _, _, r in results]
    figure = Figure(
        x=Axis(edges[first], edges[last], "‖F(RG) − R·F(G)‖  (meV/Å)", log=True),
        y=Axis(0.0, 1.08 * max(s.max() for s in shares), "share of atoms × rotations  (%)"),
        title="Histogram of the local equivariance error",
        width=1120,
        height=360,
    )
    for (series, _, result), share in zip(reversed(results), reversed(shares), strict=True):
        figure.steps(edges[first : last + 1], share[first:last], series, filled=series == "model")
        if result.forces.median > edges[first]:
            figure.marker(result.forces.median, series)
    return Plot(
        "Local equivariance error",
        [figure.svg()],
        [
            Legend(series, label, f"median {number(r.forces.median)}{_zero_note(r)}")
            for series, label, r in results
        ],
        "Logarithmic axis, bins of an eighth of a decade; vertical lines are medians. The floors "
        "show what the rounding of the arithmetic alone costs.",
        wide=True,
    )


def _zero_note(result: Equivariance) -> str:
    share = 100 * result.histogram.zeros / result.forces.count
    return f"; {share:.0f} % exactly zero" if share >= 1 else ""


def _accuracy_plots(ev: Evaluation) -> list[Plot]:
    plots: list[Plot] = []
    errors = ev.model.errors
    if errors is None:
        return plots
    if ev.labels.energies is not None and ev.answers.energies is not None:
        plots.append(_energy_parity(ev, ev.labels.energies, ev.answers.energies))
    if ev.labels.forces is not None and ev.answers.forces is not None:
        plots.append(_force_parity(ev.labels.forces, ev.answers.forces))
    for label, unit, quantity in (("Energy", "meV", "energies"), ("Force", "meV/Å", "forces")):
        found = _errors_of(ev, quantity)
        if found:
            plots.append(_distribution(label, unit, found))
    if errors.forces_by_element:
        plots.append(_by_element(ev))
    if ev.labels.forces is not None and ev.answers.forces is not None:
        plots.append(_error_against_force(ev))
    return plots


def _energy_parity(ev: Evaluation, labels: FloatArray, answers: FloatArray) -> Plot:
    per_atom = np.unique(ev.labels.n_atoms).size > 1
    scale = ev.labels.n_atoms if per_atom else np.ones(labels.size)
    unit = "eV/atom" if per_atom else "eV"
    zero = float((labels / scale).mean())
    x, y = labels / scale - zero, answers / scale - zero
    keep = np.arange(x.size)
    if x.size > MAX_SCATTER:
        keep = np.sort(np.random.default_rng(0).choice(x.size, MAX_SCATTER, replace=False))
    residual = MEV_PER_EV * (y - x)
    low, high = padded(x, y)
    figure = Figure(
        Axis(low, high, ""), Axis(low, high, f"predicted  ({unit})"), "Energy parity", height=340,
        bottom=26,
    )  # fmt: skip
    figure.line([low, high], [low, high], "diagonal")
    figure.points(x[keep], y[keep], "model")
    strip = Figure(
        Axis(low, high, f"reference energy − mean  ({unit})"),
        Axis(*_symmetric(residual), f"error  (m{unit})"),
        "Energy error against reference energy",
        height=150,
    )
    strip.line([low, high], [0, 0], "diagonal")
    strip.points(x[keep], residual[keep], "model", radius=1.8)
    caption = f"Energies relative to the mean reference, {number(zero, 7)} {unit}."
    if keep.size < x.size:
        caption += f" {keep.size} of {x.size} structures drawn."
    return Plot("Energies: predicted against reference", [figure.svg(), strip.svg()], (), caption)


def _force_parity(labels: FloatArray, answers: FloatArray) -> Plot:
    x, y = labels.ravel(), answers.ravel()
    residual = MEV_PER_EV * (y - x)
    low, high = padded(x, y)
    figure = Figure(
        Axis(low, high, ""), Axis(low, high, "predicted  (eV/Å)"), "Force parity", height=340,
        bottom=26,
    )  # fmt: skip
    figure.line([low, high], [low, high], "diagonal")
    figure.density(x, y, "model")
    strip = Figure(
        Axis(low, high, "reference force component  (eV/Å)"),
        Axis(*_symmetric(residual), "error  (meV/Å)"),
        "Force error against reference force",
        height=150,
    )
    strip.line([low, high], [0, 0], "diagonal")
    strip.density(x, residual, "model", cell=3.0)
    return Plot(
        "Forces: predicted against reference",
        [figure.svg(), strip.svg()],
        (),
        f"{x.size:,} components; darker cells hold more of them, on a logarithmic scale.",
    )


def _symmetric(values: FloatArray) -> tuple[float, float]:
    reach = 1.08 * float(np.abs(values).max()) or 1.0
    return -reach, reach


def _errors_of(ev: Evaluation, quantity: str) -> list[tuple[str, str, FloatArray]]:
    """Series, label and errors in meV or meV/Å of model and parent."""
    found = []
    reference = getattr(ev.labels, quantity)
    sides: list[tuple[str, str, Answers | None]] = [
        ("parent", "FP32 parent", ev.parent_answers),
        ("model", ev.model.info.name, ev.answers),
    ]
    for series, label, answers in sides:
        values = None if answers is None else getattr(answers, quantity)
        if values is not None and reference is not None:
            found.append((series, label, MEV_PER_EV * (values - reference).ravel()))
    return found


def _distribution(label: str, unit: str, found: list[tuple[str, str, FloatArray]]) -> Plot:
    reach = max(float(np.quantile(np.abs(errors), 0.995)) for _, _, errors in found) or 1.0
    smallest = min(errors.size for _, _, errors in found)
    edges = np.linspace(-reach, reach, min(81, max(31, 2 * round(smallest ** (1 / 2)) + 1)))
    shares = [100.0 * np.histogram(errors, edges)[0] / errors.size for _, _, errors in found]
    figure = Figure(
        Axis(-reach, reach, f"{label.lower()} error  ({unit})"),
        Axis(0.0, 1.08 * max(1e-9, *(s.max() for s in shares)), "share  (%)"),
        f"{label} error distribution",
        height=270,
    )
    order = sorted(range(len(found)), key=lambda k: found[k][0] != "model")
    for k in order:
        figure.steps(edges, shares[k], found[k][0], filled=found[k][0] == "model")
    beyond = 100.0 * float(np.mean(np.abs(found[-1][2]) > reach))
    return Plot(
        f"{label} errors",
        [figure.svg()],
        [
            Legend(series, name, f"MAE {number(float(np.abs(errors).mean()))} {unit}")
            for series, name, errors in reversed(found)
        ],
        f"Prediction minus reference; {beyond:.1f} % of the model's errors lie beyond the axis.",
    )


def _by_element(ev: Evaluation) -> Plot:
    assert ev.model.errors is not None
    parent = ev.parent.errors.forces_by_element if ev.parent and ev.parent.errors else {}
    groups = []
    for element, errors in ev.model.errors.forces_by_element.items():
        bars = [Bar("model", errors.mae, f"{number(errors.mae)} · {number(errors.rmse)}")]
        if element in parent:
            other = parent[element]
            bars.append(Bar("parent", other.mae, f"{number(other.mae)} · {number(other.rmse)}"))
        groups.append((f"{element}  ({errors.count // 3:,})", bars))
    legend = [Legend("model", ev.model.info.name)]
    if parent:
        legend.append(Legend("parent", "FP32 parent"))
    return Plot(
        "Force error per element",
        [bar_chart(groups, title="Force error per element")],
        legend,
        "Bars and first number: MAE; second number: RMSE, both of components in meV/Å. "
        "In brackets: atoms.",
    )


def _error_against_force(ev: Evaluation) -> Plot:
    """Median and 90th percentile of the error vector's length in bins of equally many atoms."""
    assert ev.labels.forces is not None
    size = np.linalg.norm(ev.labels.forces, axis=1)
    n_bins = int(np.clip(size.size // 30, 1, 16))
    bounds = np.quantile(size, np.linspace(0, 1, n_bins + 1))
    member = np.clip(np.searchsorted(bounds, size, side="right") - 1, 0, n_bins - 1)
    curves: list[tuple[str, FloatArray, FloatArray, FloatArray]] = []
    for series, answers in (("parent", ev.parent_answers), ("model", ev.answers)):
        if answers is None or answers.forces is None:
            continue
        error = MEV_PER_EV * np.linalg.norm(answers.forces - ev.labels.forces, axis=1)
        bins = [b for b in range(n_bins) if (member == b).any()]
        curves.append(
            (
                series,
                np.array([np.median(size[member == b]) for b in bins]),
                np.array([np.median(error[member == b]) for b in bins]),
                np.array([np.quantile(error[member == b], 0.9) for b in bins]),
            )
        )
    top = max(float(high.max()) for *_, high in curves) or 1.0
    figure = Figure(
        Axis(0.0, padded(size)[1], "length of the reference force  (eV/Å)"),
        Axis(0.0, 1.1 * top, "length of the error  (meV/Å)"),
        "Force error against force",
        height=270,
    )
    for series, x, median, high in curves:
        figure.line(x, high, f"outline thin series-{series}")
        figure.line(x, median, f"outline series-{series}")
        figure.points(x, median, series, radius=3.0)
    legend = [Legend("model", ev.model.info.name)]
    if len(curves) > 1:
        legend.append(Legend("parent", "FP32 parent"))
    return Plot(
        "Error where forces are large",
        [figure.svg()],
        legend,
        "Median (dots) and 90th percentile (thin line) of ‖F − F_ref‖, in bins of equally many "
        "atoms.",
    )


def _worst(ev: Evaluation) -> list[tuple[int, float, float, float | None]]:
    """Index, force MAE, largest component error and energy error of the worst structures."""
    errors = ev.model.errors
    if errors is None or errors.force_mae is None or errors.force_maximum is None:
        return []
    worst = np.argsort(-errors.force_mae, kind="stable")[:WORST]
    return [
        (
            int(k),
            float(errors.force_mae[k]),
            float(errors.force_maximum[k]),
            None if errors.energy_errors is None else float(errors.energy_errors[k]),
        )
        for k in worst
    ]


def _size_plot(size: ModelSize | None) -> Plot | None:
    if size is None or not size.parts:
        return None
    kinds: dict[tuple[str, int], list[PartSize]] = {}
    for part in size.parts:
        kinds.setdefault((_LAYER_INDEX.sub("", part.name), part.bits), []).append(part)
    ordered = sorted(kinds.items(), key=lambda kind: -sum(part.fp32_bytes for part in kind[1]))
    shown, rest = ordered[:MAX_PARTS], [part for _, parts in ordered[MAX_PARTS:] for part in parts]

    def bar(parts: Sequence[PartSize], text: str) -> Bar:
        stored = sum(part.bytes for part in parts)
        series = "model" if all(part.quantized for part in parts) else "plain"
        return Bar(
            series, stored, byte_count(stored) + text, ghost=sum(p.fp32_bytes for p in parts)
        )

    groups = [
        (name if len(parts) == 1 else f"{name} ×{len(parts)}", [bar(parts, f" · {bits} bit")])
        for (name, bits), parts in shown
    ]
    if rest:
        groups.append((f"{len(rest)} small ones", [bar(rest, "")]))
    return Plot(
        "Size by part",
        [bar_chart(groups, title="Size by part")],
        [
            Legend("model", "quantised, as stored"),
            Legend("plain", "kept in FP32"),
            Legend("ghost", "the same numbers in FP32"),
        ],
        "Layers of one kind are added up; steps, centres and biases are counted with their layer.",
    )


def _shown_codes(codes: Sequence[CodeUse]) -> list[CodeUse]:
    """The first weights and the first activations."""
    weights = [use for use in codes if use.kind == "weight"]
    activations = [use for use in codes if use.kind != "weight"]
    return weights[:MAX_CODE_PLOTS] + activations[:MAX_CODE_PLOTS]


def _code_plot(use: CodeUse) -> str:
    return sparkbars(use.counts, title=f"Codes of {use.name}", series="model")


def _latency_plot(ev: Evaluation) -> Plot | None:
    if ev.latency is None:
        return None
    sizes = sorted({t.batch_size for t in ev.latency.timings})
    groups = []
    for size in sizes:
        bars = [
            Bar(t.name, t.per_structure, f"{number(t.per_structure)} ms")
            for t in ev.latency.timings
            if t.batch_size == size
        ]
        groups.append(("one structure" if size == 1 else f"batch of {size}", bars))
    names = {t.name for t in ev.latency.timings}
    legend = [Legend("model", ev.model.info.name)]
    if "parent" in names:
        legend.append(Legend("parent", "FP32 parent"))
    return Plot(
        "Time per structure",
        [bar_chart(groups, title="Time per structure")],
        legend,
        f"Energy and forces, median of {ev.latency.timings[0].repeats} interleaved calls; "
        f"{ev.latency.cpu}, {ev.latency.threads} thread(s).",
    )
