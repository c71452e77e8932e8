"""What is kept of a run of the fuzzers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "fuzz.py"
spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
assert spec is not None
assert spec.loader is not None
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)

LOG = """#1048576 pulse  cov: 1
Done 1000000 runs in 321 second(s)
stat::number_of_executed_units: 1000000
Done 1000001 runs in 87 second(s)
"""


def test_native_runs_are_read_from_their_log() -> None:
    first, second = fuzz.read_runs(LOG)
    assert (first["cases"], first["seconds"]) == (1_000_000, 321)
    assert (second["cases"], second["seconds"]) == (1_000_001, 87)


def test_a_block_of_structures_is_counted() -> None:
    came_to = fuzz.python_structures(50)
    assert came_to["cases"] == sum(came_to["outcomes"].values()) == 50
    result = {
        "command": "python scripts/fuzz.py 50",
        "targets": {"model files": fuzz.read_runs(LOG)[0], "structures from Python": came_to},
        "provenance": {"date": "2026-01-02T03", "commit": "abc", "cpu": "C", "cores": 2},
    }
    text = fuzz.as_markdown(result)
    assert "| model files | 1,000,000 | 321 |" in text
    assert "| structures from Python | 50 |" in text
    assert "| finite |" in text


def test_the_case_of_a_crash_is_named() -> None:
    assert fuzz.last_number("7\n8\nFatal Python error: Segmentation fault\n") == "8"
    assert fuzz.last_number("") == "unknown"
