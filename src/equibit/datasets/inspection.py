"""What a data set holds, and what in it looks wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from equibit.datasets.dataset import Dataset
from equibit.datasets.splits import duplicate_groups
from equibit.structures import Structure
from equibit.structures.neighbors import MIN_DISTANCE, closest_distance
from equibit.structures.structure import MAX_ATOMIC_NUMBER, FloatArray, IntArray
from equibit.structures.units import ENERGY_UNITS

if TYPE_CHECKING:
    from rich.console import RenderableType

OUTLIER_Z = 8.0
"""Robust z-score beyond which a label is called an outlier; a Gaussian passes it once in 1e15."""

NET_FORCE_LIMIT = 0.05
"""eV/Å. Forces of an isolated or periodic system add up to zero but for the labels' noise."""

_SEARCH_RADIUS = 3.0  # Å; enough for the closest pair of any bonded structure
_QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
_ALIKE = 0.03


@dataclass(frozen=True)
class Distribution:
    """Summary of one quantity over a set.

    Attributes:
        unit: of all that follows.
        count: number of values.
        mean, std: their mean and standard deviation.
        quantiles: at 0, 1, 25, 50, 75, 99 and 100 %.
    """

    unit: str
    count: int
    mean: float
    std: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class DatasetReport:
    """What ``equibit data inspect`` shows.

    Attributes:
        name, source, labels, level_of_theory, split_note, citation, licence: as in ``Dataset``.
        n_structures: number of structures.
        splits: size of each split.
        elements: number of atoms of each element, by symbol, ascending atomic number.
        atoms_per_structure: smallest, median and largest.
        compositions: number of structures of each sum formula, the ten most frequent.
        n_compositions: number of different sum formulae.
        labelled: how many structures have energies, forces and stresses.
        periodic: fraction of structures with a periodic direction.
        distributions: ``energy_per_atom`` (total), ``relative_energy`` (after least squares on the
            elements, per atom), ``force_component``, ``net_force`` (norm of the sum) and
            ``closest_distance`` (per structure).
        n_duplicates: structures that repeat the geometry of an earlier one.
        duplicates: up to ten pairs of indices of such.
        leaks: structures of the test set whose geometry is also in another split.
        outliers: up to ten structures whose energy or largest force is an outlier, with its robust
            z-score.
        n_outliers: how many there are.
        large_net_forces: number of structures with a net force beyond ``NET_FORCE_LIMIT``.
        warnings: sentences about what a user should look at.
    """

    name: str
    source: str
    labels: str
    level_of_theory: str
    split_note: str
    citation: str
    licence: str
    n_structures: int
    splits: Mapping[str, int]
    elements: Mapping[str, int]
    atoms_per_structure: tuple[int, float, int]
    compositions: Mapping[str, int]
    n_compositions: int
    labelled: Mapping[str, int]
    periodic: float
    distributions: Mapping[str, Distribution]
    n_duplicates: int
    duplicates: tuple[tuple[int, int], ...]
    leaks: int
    outliers: tuple[tuple[int, str, float], ...]
    n_outliers: int
    large_net_forces: int
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Measurements:
    """The numbers behind a report, one array each; NaN where a structure has no such label.

    Attributes:
        sizes: atoms per structure.
        energies_per_atom: total energy over atoms, eV.
        relative_energies: the same after subtracting Σ_Z n_Z ε_Z, ε by least squares, eV.
        forces: all force components, eV/Å. Shape: [any].
        largest_forces: largest force norm of each structure, eV/Å.
        net_forces: norm of the sum of forces of each structure, eV/Å.
        closest: smallest distance in each structure, Å; infinite beyond 3 Å.
        elements: atomic numbers that occur, ascending. Shape: [n_elements].
        composition: atoms of each element. Shape: [n_structures, n_elements].
        groups: equal for structures of the same geometry, see ``duplicate_groups``.
        labelled: how many structures have energies, forces and stresses.
        periodic: how many structures have a periodic direction.
    """

    sizes: FloatArray
    energies_per_atom: FloatArray
    relative_energies: FloatArray
    forces: FloatArray
    largest_forces: FloatArray
    net_forces: FloatArray
    closest: FloatArray
    elements: IntArray
    composition: IntArray
    groups: IntArray
    labelled: Mapping[str, int]
    periodic: int


def measure(structures: Sequence[Structure]) -> Measurements:
    """Walk once through a set; coinciding atoms are measured, not refused."""
    structures = list(structures)
    rows = [_measure_one(structure) for structure in structures]
    sizes, energies, largest, net, closest = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    forces = [s.forces.reshape(-1) for s in structures if s.forces is not None]
    elements, composition = _composition(structures)
    return Measurements(
        sizes=sizes,
        energies_per_atom=energies / sizes,
        relative_energies=_relative_energies(composition, energies, sizes),
        forces=np.concatenate(forces) if forces else np.zeros(0),
        largest_forces=largest,
        net_forces=net,
        closest=closest,
        elements=elements,
        composition=composition,
        groups=duplicate_groups(structures),
        labelled={
            label: sum(getattr(s, label) is not None for s in structures)
            for label in ("energy", "forces", "stress")
        },
        periodic=sum(s.periodic for s in structures),
    )


def inspect_dataset(dataset: Dataset, measured: Measurements | None = None) -> DatasetReport:
    """Counts, ranges, duplicates, outliers and what looks wrong.

    Args:
        dataset: any data set.
        measured: its measurements, where they are at hand.
    """
    numbers = measured or measure(dataset.structures)
    groups, n_structures = numbers.groups, len(dataset)
    repeated = np.flatnonzero(groups != np.arange(n_structures))
    outliers = _outliers(numbers)
    leaks = _leaks(dataset, groups)
    large = int((numbers.net_forces > NET_FORCE_LIMIT).sum())
    compositions = _compositions(numbers)
    return DatasetReport(
        name=dataset.name,
        source=dataset.source,
        labels=dataset.labels,
        level_of_theory=dataset.level_of_theory,
        split_note=dataset.split_note,
        citation=dataset.citation,
        licence=dataset.licence,
        n_structures=n_structures,
        splits={name: int(indices.size) for name, indices in dataset.splits.items()},
        elements=_elements(numbers),
        atoms_per_structure=(
            int(numbers.sizes.min()),
            float(np.median(numbers.sizes)),
            int(numbers.sizes.max()),
        ),
        compositions=dict(list(compositions.items())[:10]),
        n_compositions=len(compositions),
        labelled=numbers.labelled,
        periodic=numbers.periodic / n_structures,
        distributions=_distributions(numbers),
        n_duplicates=int(repeated.size),
        duplicates=tuple((int(groups[k]), int(k)) for k in repeated[:10]),
        leaks=leaks,
        outliers=tuple(outliers[:10]),
        n_outliers=len(outliers),
        large_net_forces=large,
        warnings=tuple(_warnings(numbers, leaks, repeated.size, outliers, large)),
    )


def report_table(report: DatasetReport) -> RenderableType:
    """The report for the terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    smallest, median, largest = report.atoms_per_structure
    splits = ", ".join(f"{count:,} {name}" for name, count in report.splits.items())
    for name, value in {
        "data set": report.name,
        "file": report.source,
        "labels": f"{report.labels}; {report.level_of_theory}",
        "structures": f"{report.n_structures:,}",
        "splits": f"{splits} ({report.split_note})",
        "elements": ", ".join(f"{symbol} {count:,}" for symbol, count in report.elements.items()),
        "atoms": f"{smallest} to {largest} per structure, median {median:g}",
        "formulae": _formulae(report),
        "labelled": ", ".join(f"{name} {count:,}" for name, count in report.labelled.items()),
        "periodic": f"{100 * report.periodic:.0f} %",
        "duplicates": f"{report.n_duplicates:,}; {report.leaks:,} of the test set in another split",
        "outliers": f"{report.n_outliers:,}" + _first_outliers(report),
        "citation": report.citation,
        "licence": report.licence,
    }.items():
        if value:
            facts.add_row(name, Text(value))
    ranges = Table(box=None)
    for heading in ("", "", "mean", "std", "min", "median", "max"):
        ranges.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, entry in report.distributions.items():
        middle = entry.quantiles[_QUANTILES.index(0.5)]
        values = (entry.mean, entry.std, entry.quantiles[0], middle, entry.quantiles[-1])
        ranges.add_row(name.replace("_", " "), entry.unit, *map(_short, values))
    warnings = [Text(f"! {warning}", style="yellow") for warning in report.warnings]
    return Group(facts, "", ranges, "", *warnings)


def draw_report(
    report: DatasetReport, measured: Measurements, path: str | os.PathLike[str]
) -> None:
    """A picture of the distributions; the suffix (.png, .svg, .pdf) says its format.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (``pip install "equibit[report]"``).
        WriteError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from equibit.storage import atomic_path

    panels = [
        ("Atoms per structure", "atoms", measured.sizes, False),
        (
            "Energy after subtracting the elements",
            "meV/atom",
            1e3 * measured.relative_energies,
            False,
        ),
        ("Force components", "eV/Å", measured.forces, True),
        ("Net force", "meV/Å", 1e3 * measured.net_forces, True),
        ("Closest distance", "Å", measured.closest, False),
    ]
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).reshape(-1)
    for axis, (title, unit, values, logarithmic) in zip(axes, panels, strict=False):
        _histogram(axis, title, unit, values[np.isfinite(values)], logarithmic)
    elements = axes[len(panels)]
    elements.bar(list(report.elements), list(report.elements.values()), color="#2a6f97")
    elements.set(title="Atoms of each element", ylabel="count")
    figure.suptitle(
        f"{report.name}: {report.n_structures:,} structures, {report.level_of_theory}",
        weight="bold",
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _measure_one(structure: Structure) -> tuple[float, float, float, float, float]:
    largest = net = np.nan
    if structure.forces is not None:
        largest = float(np.linalg.norm(structure.forces, axis=1).max())
        net = float(np.linalg.norm(structure.forces.sum(axis=0)))
    energy = np.nan if structure.energy is None else structure.energy
    return float(len(structure)), energy, largest, net, closest_distance(structure, _SEARCH_RADIUS)


def _composition(structures: Sequence[Structure]) -> tuple[IntArray, IntArray]:
    table = np.stack([np.bincount(s.numbers, minlength=MAX_ATOMIC_NUMBER + 1) for s in structures])
    elements = np.flatnonzero(table.any(axis=0))
    return elements, table[:, elements]


def _relative_energies(
    composition: IntArray, energies: FloatArray, sizes: FloatArray
) -> FloatArray:
    """(E − Σ_Z n_Z ε_Z)/n with ε by least squares over the labelled structures."""
    known = np.isfinite(energies)
    relative = np.full(len(energies), np.nan)
    if known.any():
        counts = composition[known].astype(np.float64)
        shifts, *_ = np.linalg.lstsq(counts, energies[known], rcond=None)
        relative[known] = (energies[known] - counts @ shifts) / sizes[known]
    return relative


def _distributions(numbers: Measurements) -> dict[str, Distribution]:
    quantities = {
        "energy_per_atom": ("eV", numbers.energies_per_atom),
        "relative_energy": ("eV/atom", numbers.relative_energies),
        "force_component": ("eV/Å", numbers.forces),
        "net_force": ("eV/Å", numbers.net_forces),
        "closest_distance": ("Å", numbers.closest),
    }
    found = {}
    for name, (unit, values) in quantities.items():
        finite = values[np.isfinite(values)]
        if finite.size:
            found[name] = Distribution(
                unit=unit,
                count=int(finite.size),
                mean=float(finite.mean()),
                std=float(finite.std()),
                quantiles=tuple(float(q) for q in np.quantile(finite, _QUANTILES)),
            )
    return found


def _outliers(numbers: Measurements) -> list[tuple[int, str, float]]:
    """Structures whose energy or largest force is far from the median, the farthest first."""
    found = []
    for name, values in (
        ("energy", numbers.relative_energies),
        ("largest force", numbers.largest_forces),
    ):
        scores = _robust_z(values)
        for k in np.flatnonzero(np.abs(scores) > OUTLIER_Z):
            found.append((int(k), name, float(scores[k])))
    return sorted(found, key=lambda item: -abs(item[2]))


def _robust_z(values: FloatArray) -> FloatArray:
    """(x − median)/(1.4826 MAD), 0 where there is no value or no spread. Iglewicz & Hoaglin 1993."""
    scores = np.zeros(values.size)
    known = np.isfinite(values)
    if known.any():
        centre = np.median(values[known])
        spread = 1.4826 * np.median(np.abs(values[known] - centre))
        if spread > 1e-9 * max(1.0, abs(centre)):
            scores[known] = (values[known] - centre) / spread
    return scores


def _leaks(dataset: Dataset, groups: np.ndarray) -> int:
    if "test" not in dataset.splits:
        return 0
    others = [indices for name, indices in dataset.splits.items() if name != "test"]
    seen = groups[np.concatenate(others)] if others else np.zeros(0, dtype=np.int64)
    return int(np.isin(groups[dataset.splits["test"]], seen).sum())


def _elements(numbers: Measurements) -> dict[str, int]:
    from ase.data import chemical_symbols

    totals = numbers.composition.sum(axis=0)
    return {chemical_symbols[z]: int(n) for z, n in zip(numbers.elements, totals, strict=True)}


def _compositions(numbers: Measurements) -> dict[str, int]:
    """Number of structures of each sum formula (Hill order), the most frequent first."""
    from ase.data import chemical_symbols
    from ase.formula import Formula

    rows, frequency = np.unique(numbers.composition, axis=0, return_counts=True)
    symbols = [chemical_symbols[z] for z in numbers.elements]
    formulae = {}
    for k in np.argsort(-frequency, kind="stable"):
        atoms = {symbol: int(n) for symbol, n in zip(symbols, rows[k], strict=True) if n}
        formulae[Formula.from_dict(atoms).format("hill")] = int(frequency[k])
    return formulae


def _warnings(
    numbers: Measurements,
    leaks: int,
    n_duplicates: int,
    outliers: Sequence[tuple[int, str, float]],
    large_net_forces: int,
) -> list[str]:
    found = []
    too_close = np.flatnonzero(numbers.closest < MIN_DISTANCE)
    if too_close.size:
        found.append(
            f"{too_close.size} structures have coinciding atoms, the first being {too_close[0]}: "
            "no network takes them"
        )
    median = float(np.median(numbers.closest))
    if (numbers.sizes > 1).any() and not 0.55 < median < 2.9:
        found.append(
            f"the median closest distance is {median:.3g} Å: are the positions really in the "
            "units you stated?"
        )
    found += _energy_unit_warning(numbers)
    if leaks:
        found.append(f"{leaks} structures of the test set are also in another split")
    if n_duplicates:
        found.append(f"{n_duplicates} structures repeat the geometry of an earlier one")
    if outliers:
        index, what, score = outliers[0]
        found.append(
            f"{len(outliers)} labels are outliers; the farthest is the {what} of structure {index} "
            f"(robust z = {score:.0f})"
        )
    if large_net_forces:
        found.append(
            f"{large_net_forces} structures have a net force above "
            f"{1e3 * NET_FORCE_LIMIT:.0f} meV/Å: noisy labels, an outer field or fixed atoms"
        )
    return found


def _energy_unit_warning(numbers: Measurements) -> list[str]:
    """All-electron total energies betray their unit by their ratio to the Thomas–Fermi atom's."""
    known = np.isfinite(numbers.energies_per_atom)
    if not known.any():
        return []
    estimates = numbers.composition[known] @ _thomas_fermi(numbers.elements)
    energies = numbers.energies_per_atom[known] * numbers.sizes[known]
    ratio = float(np.median(energies / estimates))
    for unit, factor in ENERGY_UNITS.items():
        if factor != 1.0 and abs(ratio * factor - 1.0) < _ALIKE:
            return [
                f"the energies are {ratio:.3g} times those of all-electron calculations, as if they "
                f"were in {unit}: check the units"
            ]
    return []


def _thomas_fermi(elements: IntArray) -> FloatArray:
    """−(0.768745 Z^{7/3} − Z²/2 + 0.269900 Z^{5/3}) Hartree, in eV (Schwinger 1981).

    Within 1 % of all-electron energies from carbon on; hydrogen is set to −0.5 Hartree.
    """
    z = elements.astype(np.float64)
    atoms = 0.768745 * z ** (7 / 3) - 0.5 * z**2 + 0.2699 * z ** (5 / 3)
    return -np.where(z == 1, 0.5, atoms) * ENERGY_UNITS["Hartree"]


def _short(value: float) -> str:
    """Five digits at most; float noise around zero is zero."""
    return "0" if abs(value) < 1e-6 else f"{value:.4g}" if abs(value) < 100 else f"{value:.1f}"


def _histogram(axis: Any, title: str, unit: str, values: FloatArray, logarithmic: bool) -> None:
    axis.set(title=title, xlabel=unit)
    if values.size == 0:
        axis.text(0.5, 0.5, "no labels", ha="center", va="center", transform=axis.transAxes)
        return
    bins: Any = min(60, max(5, int(np.sqrt(values.size))))
    if unit == "atoms":
        bins = np.arange(values.min() - 0.5, values.max() + 1)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axis.hist(values, bins=bins, color="#2a6f97")
    axis.set_ylabel("count")
    if logarithmic:
        axis.set_yscale("log")


def _formulae(report: DatasetReport) -> str:
    shown = ", ".join(f"{formula} {count:,}" for formula, count in report.compositions.items())
    more = report.n_compositions - len(report.compositions)
    return shown + (f" and {more:,} more" if more else "")


def _first_outliers(report: DatasetReport) -> str:
    if not report.outliers:
        return ""
    parts = [f"{what} of {index} (z = {score:.0f})" for index, what, score in report.outliers[:3]]
    return ": " + ", ".join(parts) + (" …" if report.n_outliers > len(parts) else "")
