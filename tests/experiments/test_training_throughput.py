"""The benchmark script, eager only: compiling takes minutes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from tests.experiments.small import small_rmd17
from tests.experiments.test_ethanol import configured

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "training_throughput.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_throughput", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_keeps_one_entry_per_recipe(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EQUIBIT_DATA", str(small_rmd17(tmp_path / "data")))
    configured(tmp_path)
    output = tmp_path / "out.json"
    common = ["--training", str(tmp_path / "training.yaml"), "--modes", "eager",
              "--batch-size", "4", "--output", str(output)]  # fmt: skip
    for extra in (["--repeats", "2"], ["--repeats", "3"], ["--repeats", "1", "--recipe", "w4a8"]):
        assert script.main([*common, *extra]) == 0
    entries = json.loads(output.read_text())["measurements"]
    repeats = {e["recipe"]: e["timings"]["eager"]["repeats"] for e in entries}
    assert repeats == {"fp32": 3, "w4a8": 1}
    assert entries[0]["speed_up"] is None
    assert "structures/s" in capsys.readouterr().out


def test_an_unknown_mode_is_refused(script: ModuleType) -> None:
    with pytest.raises(SystemExit) as stop:
        script.main(["--modes", "fast"])
    assert stop.value.code == 2
