#!/usr/bin/env python3
"""Fuzz the model loader and structure input, and keep what came of it.

    python scripts/fuzz.py [CASES]          # a million unless said otherwise

Runs the native targets (scripts/fuzz.sh: Clang, sanitizers) on so many cases each, and a tenth as many
random structures by every way in from Python (tests/engine/structure_cases.py), then writes results/fuzz.json and .md: cases, seconds
and outcomes, with date, commit, CPU and versions. A crash, a hang, a NaN or an error that was not
promised ends it with status 1 and the number of the case.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equibit.evaluation.provenance import Provenance
from equibit.evaluation.record import to_plain
from equibit.experiments.stages import write_json
from equibit.storage.atomic import atomic_text

CHECKOUT = Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / "results" / "fuzz.json"
BLOCK = 20_000  # cases of one process


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    cases = int(given[0]) if given else 1_000_000
    native = native_targets(cases)
    if native is None:
        return 1
    structures = python_structures(max(cases // 10, 1))
    if structures is None:
        return 1
    result = {
        "command": f"python scripts/fuzz.py {cases}",
        "targets": {**native, "structures from Python": structures},
        "provenance": to_plain(Provenance.here()),
    }
    write_json(RESULTS, result)
    with atomic_text(RESULTS.with_suffix(".md")) as file:
        file.write(as_markdown(result))
    return 0


def native_targets(cases: int) -> dict[str, Any] | None:
    """Cases and seconds of each, or None where one failed."""
    process = subprocess.Popen(
        [CHECKOUT / "scripts" / "fuzz.sh", str(cases)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    if process.wait() != 0:
        return None
    runs = read_runs("".join(lines))
    return dict(zip(("model files", "structures, native"), runs, strict=True))


def read_runs(log: str) -> list[dict[str, Any]]:
    """What libFuzzer says of each target that it finished."""
    return [
        {"cases": int(cases), "seconds": int(seconds), "outcomes": None}
        for cases, seconds in re.findall(r"^Done (\d+) runs in (\d+) second", log, re.MULTILINE)
    ]


def python_structures(cases: int) -> dict[str, Any] | None:
    """Cases, seconds, outcomes and the slowest case, or None where one failed."""
    outcomes: Counter[str] = Counter()
    slowest = [0.0, 0]
    start = time.perf_counter()
    for first in range(0, cases, BLOCK):
        count = min(BLOCK, cases - first)
        block = subprocess.run(
            [sys.executable, "-m", "tests.engine.structure_cases", str(first), str(count)],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
        )
        if block.returncode != 0:
            print(block.stderr[-4000:], file=sys.stderr)
            print(f"case {last_number(block.stderr)} failed", file=sys.stderr)
            return None
        came_to = json.loads(block.stdout)
        outcomes.update(came_to["outcomes"])
        slowest = max(slowest, came_to["slowest"])
        seconds = time.perf_counter() - start
        print(f"{first + count:,} structures from Python, {seconds:.0f} s", flush=True)
    return {
        "cases": cases,
        "seconds": round(time.perf_counter() - start),
        "outcomes": dict(outcomes.most_common()),
        "slowest": {"seconds": round(slowest[0], 2), "case": slowest[1]},
    }


def last_number(log: str) -> str:
    """The case that was under way when a process ended."""
    numbers = re.findall(r"^(\d+)$", log, re.MULTILINE)
    return numbers[-1] if numbers else "unknown"


def as_markdown(result: dict[str, Any]) -> str:
    """The tables a reader looks at."""
    made = result["provenance"]
    structures = result["targets"]["structures from Python"]
    lines = [
        "# Fuzzing",
        "",
        f"`{result['command']}`: no crash, no hang, no NaN, no error that was not promised; "
        f"{made['date'][:10]}, commit {made['commit']}, {made['cpu']}, {made['cores']} cores.",
        "",
        "| target | cases | seconds |",
        "|---|---:|---:|",
    ]
    for name, target in result["targets"].items():
        lines.append(f"| {name} | {target['cases']:,} | {target['seconds']:,} |")
    slowest = structures["slowest"]
    lines += [
        "",
        f"The slowest structure from Python, case {slowest['case']}, took {slowest['seconds']} s.",
        "",
        "| structures from Python came to | cases |",
        "|---|---:|",
    ]
    for outcome, count in structures["outcomes"].items():
        lines.append(f"| {outcome.replace('|', '/')} | {count:,} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
