"""``equibit md`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from equibit import engine
from equibit.cli.main import main

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")

MODEL = Path(__file__).parents[1] / "engine" / "data" / "ethanol-fp32-v1.safetensors"
SHORT = ["--steps", "200", "--sample-every", "10", "--frame-every", "100"]


def test_moves_and_says_what_came_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "md"
    command = ["md", str(MODEL), "ethanol-pbe", "-o", str(folder), *SHORT]
    assert main([*command, "--dry-run"]) == 0
    outlook = capsys.readouterr().out
    assert "This run would" in outlook
    assert "['" not in outlook
    assert not folder.exists()
    assert main(command) == 0
    said = capsys.readouterr()
    assert "meV/atom/ps" in said.out
    assert "ns/day" in said.err
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint.safetensors",
        "dynamics.json",
        "dynamics.png",
        "samples.csv",
        "trajectory.xyz",
    }
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 200
    assert main([*command, "--seed", "1"]) == 1
    assert "another run" in capsys.readouterr().err


def test_a_collapse_ends_with_a_status_and_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["md", str(MODEL), "ethanol-pbe", "-o", str(tmp_path), *SHORT, "--timestep", "20"]
    assert main(command) == 1
    said = capsys.readouterr()
    assert "the system collapsed at step" in said.err
    assert "needs more samples" in said.out  # a drift of nothing would look like a good one


def test_a_structure_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["md", str(MODEL), "ethanol-pbe", "-o", str(tmp_path / "md"), *SHORT]
    assert main([*command, "--index", "99999"]) == 1
    assert "no structure 99999" in capsys.readouterr().err
