"""What is kept of a run of the slow tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "slow_tests.py"
spec = importlib.util.spec_from_file_location("slow_tests", SCRIPT)
assert spec is not None
assert spec.loader is not None
slow_tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(slow_tests)

REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="test_good" time="1.26"/>
<testcase classname="tests.a" name="test_bad" time="0.5"><failure message="1 != 2">…</failure>
</testcase>
<testcase classname="tests.b" name="test_gone" time="0"><skipped message="no PySCF"/></testcase>
</testsuite></testsuites>"""


def test_outcomes_and_reasons_are_kept() -> None:
    tests = slow_tests.read_report(REPORT)
    assert [(t["outcome"], t["reason"], t["seconds"]) for t in tests] == [
        ("passed", None, 1.3),
        ("failure", "1 != 2", 0.5),
        ("skipped", "no PySCF", 0.0),
    ]
    provenance = {"date": "2026-01-02T03", "commit": "abc", "cpu": "C", "cores": 2, "threads": 1}
    text = slow_tests.as_markdown(
        {"command": "c", "outcomes": {"passed": 1}, "tests": tests, "provenance": provenance}
    )
    assert "| `tests.b::test_gone` | skipped (no PySCF) | 0.0 |" in text
    assert "2026-01-02, commit abc, C, 2 cores" in text
