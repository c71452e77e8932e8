"""The drift table and figure, from runs that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from equibit import engine
from equibit.cli.main import main
from equibit.experiments.drift import Contender, contender
from equibit.structures import ConfigError

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")

DATA = Path(__file__).parents[1] / "engine" / "data"
FP32, W8A8 = (str(DATA / f"ethanol-{name}-v1.safetensors") for name in ("fp32", "w8a8"))


def test_contenders_are_models_or_pairs_of_them() -> None:
    assert contender("ethanol-w4a8") == Contender("ethanol-w4a8", "ethanol-w4a8")
    assert contender("a+b/4") == Contender("a+b/4", "a", "b", 4)
    for text in ("a+b", "a+b/0", "+b/4"):
        with pytest.raises(ConfigError, match="no contender"):
            contender(text)


def test_makes_table_figure_and_record_and_keeps_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, results = tmp_path / "runs", tmp_path / "results"
    command = ["experiment", "drift", "--seeds", "0,1", "--steps", "10000"]
    models = ["--models", f"{FP32},{W8A8}+{FP32}/2,no-such-model"]
    folders = ["--runs", str(runs), "--results", str(results)]
    assert main([*command, *models, *folders]) == 0
    record = json.loads((results / "drift.json").read_text())
    first, pair, missing = record["rows"]
    assert first["seeds"] == [0, 1]
    assert first["slopes"][0] != first["slopes"][1]
    assert first["mean"] == pytest.approx(sum(first["slopes"]) / 2)
    assert abs(first["mean"]) < 0.2
    assert pair["recipe"] == "w8a8"
    assert "no model" in missing["reason"]
    assert record["picoseconds"] == 5.0
    table = (results / "drift.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("\n| `") == 3
    assert (results / "drift.svg").read_text().count("<svg") == 1

    checkpoints = sorted(runs.rglob("checkpoint.safetensors"))
    assert len(checkpoints) == 4
    times = [path.stat().st_mtime_ns for path in checkpoints]
    assert main([*command, *models, *folders]) == 0
    assert [path.stat().st_mtime_ns for path in checkpoints] == times
