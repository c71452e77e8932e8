"""What the bench times is the same network, and what it writes can be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from equibit import engine
from equibit.cli.main import main
from equibit.experiments.bench import BenchSettings, saved_models, time_in_turns
from equibit.experiments.bench_peers import torch_calls
from equibit.experiments.bench_systems import ASPIRIN, ETHANOL, water
from equibit.structures import ConfigError, check_distinct_positions, neighbor_list

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")


@pytest.mark.parametrize("molecules", [1, 8, 64, 333])
def test_water_has_its_density_and_whole_molecules(molecules: int) -> None:
    structure = water(molecules)
    assert len(structure) == 3 * molecules
    assert structure.cell is not None
    assert molecules / np.linalg.det(structure.cell) == pytest.approx(0.0334)
    check_distinct_positions(structure)
    bonds = np.linalg.norm(structure.positions[1::3] - structure.positions[::3], axis=1)
    assert np.allclose(bonds, 0.957, atol=1e-3)


def test_water_has_the_neighbours_of_the_liquid() -> None:
    uniform = 999 * 3 * 0.0334 * 4 / 3 * np.pi * 5.0**3
    assert len(neighbor_list(water(333), 5.0)) == pytest.approx(uniform, rel=0.05)


def test_molecules_are_molecules() -> None:
    for molecule, count in ((ETHANOL, 9), (ASPIRIN, 21)):
        assert len(molecule) == count
        check_distinct_positions(molecule)


def test_slow_contenders_get_fewer_turns_and_medians_ignore_outliers() -> None:
    now = [0.0]
    taken = iter([1.0] * 12 + [50.0] + [1.0] * 100)

    def call(seconds: float | None = None) -> None:
        now[0] += next(taken) if seconds is None else seconds

    medians = time_in_turns(
        {"even": call, "slow": lambda: call(30.0)},
        rounds=7,
        seconds=2.5,
        clock=lambda: now[0],
    )
    assert medians == {"even": 1.0, "slow": 30.0}
    assert now[0] < 7 * 30.0


def test_all_contenders_run_the_same_network(tmp_path: Path) -> None:
    settings = BenchSettings(irreps="8x0e+8x1o", layers=2, recipes=("w8a16",))
    models = saved_models(tmp_path, settings)
    assert set(models) == {"fp32", "w8a16"}
    energies = [engine.load(path).compute([ETHANOL])[0].energy for path in models.values()]
    assert energies[0] != energies[1]
    assert energies[0] == pytest.approx(energies[1], abs=0.1)
    calls = torch_calls(models["fp32"], ETHANOL, compiled=False)
    assert float(calls["torch eager|energy"]().sum()) == pytest.approx(energies[0], abs=1e-4)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "bench.json"
    small = ["--irreps", "8x0e+8x1o", "--layers", "1", "--rounds", "2", "--recipes", "w8a8"]
    command = ["bench", "--systems", "ethanol", "--sizes", "24", "--no-torch", *small]
    assert main([*command, "-o", str(output)]) == 0
    assert "own FP32" in capsys.readouterr().out
    record = json.loads(output.read_text())
    rows = record["systems"]["ethanol"]
    fastest = engine.kernel_names()[0]
    assert rows[f"engine w8a8 {fastest}"]["forces"]["own_fp32_over_this"] > 0
    stages = record["stages"]["ethanol"]
    assert set(stages) == {f"{r} {what}" for r in ("fp32", "w8a8") for what in ("energy", "forces")}
    assert stages["w8a8 forces"]["edges, reverse"] > 0 == stages["w8a8 energy"]["edges, reverse"]
    assert stages["w8a8 energy"]["rounding"] > 0 == stages["fp32 forces"]["rounding"]
    assert 0 < record["roofline"][f"engine w8a8 {fastest}"]["share"] < 1
    assert record["cost_against_atoms"][0]["atoms"] == 24
    assert 10 < record["peak_megabytes"]["water-192"]["engine fp32"] < 250
    assert set(record["threads"]) == {"64 ethanol molecules"}
    row = record["threads"]["64 ethanol molecules"]["w8a8"]
    one, two = row["microseconds"]["1"], row["microseconds"]["2"]
    assert row["one_over_this"] == pytest.approx(one / two, abs=1e-3)  # three decimals
    assert output.with_suffix(".svg").read_text().count("<svg") == 1


def test_unknown_systems_are_named() -> None:
    with pytest.raises(ConfigError, match="no system 'argon'"):
        BenchSettings(systems=("argon",))
