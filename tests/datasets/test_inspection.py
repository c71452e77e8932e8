"""What the report must see: wrong units, copies, leaks, outliers, net forces, close atoms."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from equibit.datasets.dataset import Dataset
from equibit.datasets.inspection import draw_report, inspect_dataset, measure, report_table
from equibit.structures import Structure

HARTREE = 27.211386245988


def molecules(n: int = 40, factor: float = 1.0) -> list[Structure]:
    """Water and methanol-like structures with all-electron energies, in eV times ``factor``."""
    rng = np.random.default_rng(0)
    structures = []
    for k in range(n):
        numbers = [8, 1, 1] if k % 2 else [6, 8, 1, 1, 1, 1]
        energy = (-76.4 if k % 2 else -115.7) * HARTREE + rng.normal(scale=0.1)
        forces = rng.normal(size=(len(numbers), 3))
        forces -= forces.mean(axis=0)
        grid = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1]), -1).reshape(-1, 3)[: len(numbers)]
        positions = 1.1 * grid + rng.normal(scale=0.02, size=(len(numbers), 3))
        structures.append(
            Structure(numbers, positions, energy=energy * factor, forces=forces * factor)
        )
    return structures


def dataset(structures: list[Structure]) -> Dataset:
    n = len(structures)
    splits = {"train": np.arange(n // 2), "test": np.arange(n // 2, n)}
    return Dataset("made-up", structures, splits, labels="made-up")


def test_counts() -> None:
    report = inspect_dataset(dataset(molecules()))
    assert report.n_structures == 40
    assert report.elements == {"H": 120, "C": 20, "O": 40}
    assert report.compositions == {"CH4O": 20, "H2O": 20}
    assert report.atoms_per_structure == (3, 4.5, 6)
    assert report.labelled == {"energy": 40, "forces": 40, "stress": 0}
    assert report.splits == {"train": 20, "test": 20}
    assert report.periodic == 0.0
    assert report.warnings == ()
    relative = report.distributions["relative_energy"]
    assert relative.std < 0.1, "the elements' energies are not subtracted"
    assert report.distributions["net_force"].quantiles[-1] < 1e-12
    assert report.distributions["force_component"].count == 3 * 180


def test_copies_and_leaks() -> None:
    structures = molecules()
    structures[30] = structures[3]
    structures[4] = structures[3]
    report = inspect_dataset(dataset(structures))
    assert report.duplicates == ((3, 4), (3, 30))
    assert report.leaks == 1
    assert any("also in another split" in warning for warning in report.warnings)


def changed(structure: Structure, **changes: object) -> Structure:
    return Structure(**{**vars(structure), **changes})  # type: ignore[arg-type]


def test_outliers() -> None:
    structures = molecules()
    structures[7] = changed(structures[7], energy=structures[7].energy + 50)
    structures[8] = changed(structures[8], forces=100 * structures[8].forces)
    report = inspect_dataset(dataset(structures))
    assert {(index, what) for index, what, _ in report.outliers} == {
        (7, "energy"),
        (8, "largest force"),
    }


def test_net_forces() -> None:
    structures = molecules()
    structures[7] = changed(structures[7], forces=structures[7].forces + 0.1)
    assert inspect_dataset(dataset(structures)).large_net_forces == 1


def test_coinciding_atoms_are_reported_not_refused() -> None:
    structures = molecules()
    positions = structures[5].positions.copy()
    positions[1] = positions[0]
    structures[5] = changed(structures[5], positions=positions)
    report = inspect_dataset(dataset(structures))
    assert any("coinciding atoms, the first being 5" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("factor", "unit"),
    [(1 / HARTREE, "Hartree"), (23.0605, "kcal/mol"), (96.485, "kJ/mol"), (1000.0, "meV")],
)
def test_energies_in_another_unit_are_noticed(factor: float, unit: str) -> None:
    report = inspect_dataset(dataset(molecules(factor=factor)))
    assert any(f"as if they were in {unit}" in warning for warning in report.warnings)


@pytest.mark.parametrize("factor", [0.0735, 1.0, 0.001])
def test_valence_energies_are_not_mistaken(factor: float) -> None:
    """GFN2-xTB leaves the core electrons out: 7 % of the all-electron energy of ethanol."""
    report = inspect_dataset(dataset(molecules(factor=factor)))
    assert not any("check the units" in warning for warning in report.warnings)


@pytest.mark.parametrize("factor", [0.1, 1 / 0.529177, 10.0])
def test_positions_in_another_unit_are_noticed(factor: float) -> None:
    structures = [changed(s, positions=s.positions * factor) for s in molecules()]
    warnings = inspect_dataset(dataset(structures)).warnings
    noticed = any("are the positions really in the units" in warning for warning in warnings)
    # Bohr taken for Å only doubles distances; chemistry has such distances too
    assert noticed == (factor != 1 / 0.529177)


def test_one_atom_without_labels() -> None:
    report = inspect_dataset(dataset([Structure([1], [[0, 0, 0]])] * 2))
    assert "energy_per_atom" not in report.distributions
    assert report.outliers == ()


def test_periodic_fraction() -> None:
    crystal = Structure([1], [[0, 0, 0]], cell=3 * np.eye(3), pbc=True)
    assert inspect_dataset(dataset([crystal, Structure([1], [[0, 0, 0]])])).periodic == 0.5


def test_json_and_table() -> None:
    from rich.console import Console

    structures = molecules()
    structures[7] = changed(structures[7], energy=structures[7].energy + 50)
    report = inspect_dataset(dataset(structures))
    again = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert again["distributions"]["energy_per_atom"]["unit"] == "eV"
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(report_table(report))
    text = capture.get()
    for part in ("made-up", "H 120, C 20, O 40", "force component", "! 1 labels are outliers"):
        assert part in text
    assert "…" not in text, "something is cut off at 80 columns"


@pytest.mark.parametrize("labelled", [True, False])
def test_picture(tmp_path: Path, labelled: bool) -> None:
    pytest.importorskip("matplotlib")
    structures = molecules(10)
    if not labelled:
        structures = [changed(s, energy=None, forces=None) for s in structures]
    measured = measure(structures)
    path = tmp_path / "report.png"
    draw_report(inspect_dataset(dataset(structures), measured), measured, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["report.png"]
