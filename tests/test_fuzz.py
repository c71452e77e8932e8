"""What is kept of a run of the fuzzers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from equibit import engine

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "fuzz.py"
spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
assert spec is not None
assert spec.loader is not None
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)

LOG = """#1048576 pulse  cov: 1
Done 1000000 runs in 321 second(s)
stat::number_of_executed_units: 1000000
"""


@pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")
def test_runs_are_counted_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "RESULTS", tmp_path / "fuzz.json")
    fuzz.keep("model", fuzz.read_run(LOG) | {"command": "python scripts/fuzz.py 1000000 model"})
    assert fuzz.main(["50", "python"]) == 0
    kept = json.loads((tmp_path / "fuzz.json").read_text())
    assert (kept["model"]["cases"], kept["model"]["seconds"]) == (1_000_000, 321)
    assert kept["python"]["cases"] == sum(kept["python"]["outcomes"].values()) == 50
    text = (tmp_path / "fuzz.md").read_text()
    assert "| `python scripts/fuzz.py 1000000 model` | 1,000,000 | 321 |" in text
    assert "| `python scripts/fuzz.py 50 python` | 50 |" in text
    assert "| finite |" in text


def test_the_case_of_a_crash_is_named() -> None:
    assert fuzz.last_number("7\n8\nFatal Python error: Segmentation fault\n") == "8"
    assert fuzz.last_number("") == "unknown"
