#!/usr/bin/env python3
"""Run the slow tests (or those that pytest's own arguments choose) and keep their last results.

    python scripts/slow_tests.py
    python scripts/slow_tests.py tests/datasets

Writes results/slow-tests.json and .md: outcome and seconds of every test, with date, commit, CPU and
versions. The status is pytest's.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from equibit.evaluation.provenance import Provenance
from equibit.evaluation.record import to_plain
from equibit.experiments.stages import write_json
from equibit.storage.atomic import atomic_text

RESULTS = Path(__file__).resolve().parents[1] / "results" / "slow-tests.json"


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = list(sys.argv[1:] if arguments is None else arguments)
    # A shell's background jobs ignore Ctrl-C, and so would the processes that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "slow", f"--junitxml={report}", *chosen]
        status = subprocess.run(command, cwd=RESULTS.parents[1]).returncode
        if not report.is_file():
            return status
        tests = read_report(report.read_text(encoding="utf-8"))
    result = {
        "command": " ".join(["python scripts/slow_tests.py", *chosen]),
        "status": status,
        "outcomes": dict(Counter(test["outcome"] for test in tests)),
        "tests": tests,
        "provenance": to_plain(Provenance.here()),
    }
    write_json(RESULTS, result)
    with atomic_text(RESULTS.with_suffix(".md")) as file:
        file.write(as_markdown(result))
    return status


def read_report(xml: str) -> list[dict[str, Any]]:
    """Name, outcome, reason and seconds of each test in pytest's JUnit report."""
    tests = []
    for case in ElementTree.fromstring(xml).iter("testcase"):
        # A test that passed has no child that says otherwise.
        (problem,) = [child for child in case if child.tag in ("failure", "error", "skipped")] or [
            None
        ]
        tests.append(
            {
                "test": f"{case.get('classname')}::{case.get('name')}",
                "outcome": "passed" if problem is None else problem.tag,
                "reason": None if problem is None else problem.get("message"),
                "seconds": round(float(case.get("time", 0)), 1),
            }
        )
    return tests


def as_markdown(result: dict[str, Any]) -> str:
    """The table a reader looks at."""
    made = result["provenance"]
    counts = ", ".join(f"{count} {outcome}" for outcome, count in result["outcomes"].items())
    lines = [
        "# Slow tests",
        "",
        f"`{result['command']}`: {counts}; {made['date'][:10]}, commit {made['commit']}, "
        f"{made['cpu']}, {made['cores']} cores, {made['threads']} threads.",
        "",
        "| test | outcome | seconds |",
        "|---|---|---:|",
    ]
    for test in result["tests"]:
        reason = f" ({test['reason']})" if test["outcome"] == "skipped" else ""
        lines.append(f"| `{test['test']}` | {test['outcome']}{reason} | {test['seconds']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
