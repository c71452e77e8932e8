"""Arithmetic and layout of the table, from made-up results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from equibit.experiments.ethanol_table import (
    TARGETS,
    Average,
    filled,
    make_table,
    page,
    short_table,
    write_table,
)


def result(variant: str, seed: int, *, labels: str = "rmd17", **figures: float) -> dict[str, Any]:
    energy, forces = figures.get("energy", 1.0), figures.get("forces", 4.0)
    lee = figures.get("lee", 0.1)
    return {
        "cell": {"labels": labels, "variant": variant, "seed": seed},
        "command": f"make {labels} {variant} {seed}",
        "settings": {"epochs": figures.get("epochs", 10)},
        "model": {
            "errors": {
                "energy": {"mae": energy, "rmse": 1.3 * energy},
                "forces": {"mae": forces, "rmse": 1.5 * forces},
            },
            "net": {"force": {"mean": 1e-13}, "torque": {"mean": 1e-12}},
        },
        "distance_to_parent": None,
        "equivariance": {"forces": {"mean": lee, "median": lee / 10, "maximum": lee * 10}},
        "floors": {"FP64 model": {"forces": {"mean": 1e-11, "maximum": 2e-11}}},
        "size": {
            "quantized_ratio": 6.6,
            "file_ratio": 5.8,
            "file_bytes": 120_000,
            "weight_ratios": {"8": 3.9, "4": 7.53},
        },
        "provenance": {
            "date": "2026-01-02T03:04:05+00:00",
            "cpu": "A CPU",
            "threads": 1,
            "platform": "Linux",
            "versions": {"torch": "2.13.0"},
        },
    }


RESULTS = [
    result("fp32", 0, energy=0.8, forces=3.0),
    result("fp32", 1, energy=1.0, forces=5.0),
    result("control", 0, energy=0.5, forces=2.0),
    result("control", 1, energy=1.0, forces=4.0),
    result("w4a8", 0, energy=0.55, forces=2.1, lee=0.01),
    result("w4a8", 1, energy=1.0, forces=4.0, lee=0.02),
    result("naive-w8a8", 0, lee=1.0),
    result("fp32", 0, labels="md17", forces=99.0),
]


@pytest.fixture
def table() -> Any:
    return make_table(RESULTS, ("rmd17", "md17"), ("w8a8", "w4a8", "naive-w8a8"), command="all")


def test_mean_and_spread_over_seeds(table: Any) -> None:
    cell = table.row("rmd17", "fp32").metrics["forces_mae"]
    assert cell.mean == pytest.approx(4.0)
    assert cell.spread == pytest.approx(2**0.5)
    assert cell.values == {0: 3.0, 1: 5.0}
    assert table.row("rmd17", "naive-w8a8").metrics["forces_mae"].spread is None


def test_ratios_are_taken_seed_by_seed(table: Any) -> None:
    metrics = table.row("rmd17", "w4a8").metrics
    assert metrics["energy_ratio"].values == pytest.approx({0: 1.1, 1: 1.0})
    assert metrics["forces_ratio"].mean == pytest.approx(1.025)
    # Only seed 0 has a naive network to compare with.
    assert metrics["lee_below_naive"].values == pytest.approx({0: 100.0})
    assert table.row("rmd17", "control").metrics["forces_ratio"] is None
    assert table.row("rmd17", "fp32").metrics["forces_ratio"] is None


def test_targets_are_met_missed_or_not_run(table: Any) -> None:
    met = {(t.variant, t.metric, t.limit): t.met for t in table.targets if t.labels == "rmd17"}
    assert len(table.targets) == len(TARGETS)
    assert met["fp32", "energy_mae", 1.0] is True
    assert met["fp32", "energy_mae", 0.4] is False
    assert met["w4a8", "forces_ratio", 1.03] is True
    assert met["w4a8", "lee_below_naive", 30] is True
    assert met["w8a8", "file_ratio", 3.5] is None
    assert met["w4a8", "weight_ratio", 7.5] is True


def test_kinds_of_labels_stand_apart(table: Any) -> None:
    text = page(table)
    rmd17, md17 = text.index("rMD17 labels, split 1"), text.index("original MD17 labels")
    assert rmd17 < text.index("4.00 ± 1.4") < md17 < text.index("99.0")
    assert "99.0" not in short_table(table)


def test_what_was_not_run_says_so(table: Any) -> None:
    lines = short_table(table).splitlines()
    (w8a8,) = [line for line in lines if line.startswith("| `w8a8`")]
    assert w8a8 == "| `w8a8` | not run | not run | not run | not run |"
    empty = make_table([], ("rmd17",), ("w4a8",))
    assert "Nothing was run yet." in page(empty)
    assert "not run" in short_table(empty)


def test_seeds_of_different_settings_are_pointed_out() -> None:
    mixed = [result("fp32", 0), result("fp32", 1, epochs=20)]
    table = make_table(mixed, ("rmd17",), ())
    assert "Seeds of fp32 were made with different settings." in page(table)
    assert "different settings" not in page(make_table(RESULTS, ("rmd17",), ()))


def test_files_and_marked_documents_are_written(table: Any, tmp_path: Path) -> None:
    readme, other = tmp_path / "README.md", tmp_path / "other.md"
    readme.write_text("a\n<!-- results-table: by hand never -->\nold\n<!-- /results-table -->\nz\n")
    other.write_text("no marks")
    folder = tmp_path / "results"
    written = write_table(table, folder, (readme, other, tmp_path / "missing.md"))
    assert written == [folder / "table.json", folder / "table.md", readme]
    text = readme.read_text()
    assert text.startswith("a\n<!-- results-table: by hand never -->\n\n| rMD17 ethanol")
    assert text.endswith("|\n\n<!-- /results-table -->\nz\n")
    assert "old" not in text
    plain = json.loads((folder / "table.json").read_text())
    assert plain["rows"][0]["metrics"]["forces_mae"]["values"] == {"0": 3.0, "1": 5.0}
    assert plain["provenance"]["commands"]["rmd17-w4a8-seed1"] == "make rmd17 w4a8 1"
    write_table(table, folder, (readme,))
    assert readme.read_text() == text


@pytest.mark.parametrize(
    "document",
    ["none", "<!-- results-table -->\nopen", "<!-- results-table\n<!-- /results-table -->"],
)
def test_documents_without_a_closed_pair_stay(document: str) -> None:
    assert filled(document, "results-table", "new") == document


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({0: 1.0}, "1.00"),
        ({0: 1.0, 1: 1.2}, "1.10 ± 0.14"),
        ({0: 3.5123, 1: 3.5124}, "3.51"),
        ({0: 2.0, 1: 2.0}, "2.00"),
    ],
)
def test_a_spread_is_told_where_the_mean_shows_it(values: dict[int, float], text: str) -> None:
    average = Average.of(values)
    assert average is not None
    assert average.text() == text
