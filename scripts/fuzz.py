#!/usr/bin/env python3
"""Fuzz the model loader and structure input, and keep what came of it.

    python scripts/fuzz.py [CASES] [TARGET...]    # a million of each target unless said otherwise

Targets: `model` and `structure` are native (scripts/fuzz.sh: Clang, sanitizers), `python` puts random
structures to the engine by every way in from Python (tests/engine/structure_cases.py). Of each,
results/fuzz.json and .md keep the last run: cases, seconds and outcomes, with date, commit, CPU and
versions. A crash, a hang, a NaN or an error that was not promised ends it with status 1 and the number
of the case.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from equibit.evaluation.provenance import Provenance
from equibit.evaluation.record import to_plain
from equibit.experiments.stages import write_json
from equibit.storage.atomic import atomic_text

CHECKOUT = Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / "results" / "fuzz.json"
BLOCK = 10_000  # cases of one process


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    cases = int(given[0]) if given else 1_000_000
    for target in given[1:] or TARGETS:
        command = {"command": f"python scripts/fuzz.py {cases} {target}"}
        done = False
        for run in TARGETS[target](cases):
            keep(target, run | command)
            done = run["cases"] >= cases
        if not done:
            return 1
    return 0


def keep(target: str, run: dict[str, Any]) -> None:
    """Put one target's run in the place of its last."""
    targets = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    targets[target] = run | {"provenance": to_plain(Provenance.here())}
    write_json(RESULTS, targets)
    with atomic_text(RESULTS.with_suffix(".md")) as file:
        file.write(as_markdown(targets))


def native(target: str, cases: int) -> Iterator[dict[str, Any]]:
    """Cases and seconds of a native target, or nothing where it failed."""
    process = subprocess.Popen(
        [CHECKOUT / "scripts" / "fuzz.sh", str(cases), target],
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
    if process.wait() == 0:
        yield read_run("".join(lines))


def read_run(log: str) -> dict[str, Any]:
    """What libFuzzer says when it has finished."""
    found = re.findall(r"^Done (\d+) runs in (\d+) second", log, re.MULTILINE)
    return {"cases": int(found[-1][0]), "seconds": int(found[-1][1])}


def python_structures(cases: int) -> Iterator[dict[str, Any]]:
    """Cases, seconds, outcomes and the slowest case so far, after every block that did not fail."""
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
            return
        came_to = json.loads(block.stdout)
        outcomes.update(came_to["outcomes"])
        slowest = max(slowest, came_to["slowest"])
        seconds = round(time.perf_counter() - start)
        print(f"{first + count:,} structures from Python, {seconds:,} s", flush=True)
        yield {
            "cases": first + count,
            "seconds": seconds,
            "outcomes": dict(outcomes.most_common()),
            "slowest": {"seconds": round(slowest[0], 2), "case": slowest[1]},
        }


def last_number(log: str) -> str:
    """The case that was under way when a process ended."""
    numbers = re.findall(r"^(\d+)$", log, re.MULTILINE)
    return numbers[-1] if numbers else "unknown"


def as_markdown(targets: dict[str, Any]) -> str:
    """The tables a reader looks at."""
    lines = [
        "# Fuzzing",
        "",
        "No crash, no hang, no NaN, no error that was not promised, in the last run of each target.",
        "A run that was stopped early has fewer cases than its command asks for.",
        "",
        "| command | cases | seconds | date | commit | CPU |",
        "|---|---:|---:|---|---|---|",
    ]
    for run in targets.values():
        made = run["provenance"]
        lines.append(
            f"| `{run['command']}` | {run['cases']:,} | {run['seconds']:,} | {made['date'][:10]} | "
            f"{made['commit']} | {made['cpu']} |"
        )
    if "python" in targets:
        run = targets["python"]
        slowest = run["slowest"]
        lines += [
            "",
            f"The slowest structure from Python, case {slowest['case']}, took {slowest['seconds']} s.",
            "",
            "| structures from Python came to | cases |",
            "|---|---:|",
        ]
        for outcome, count in run["outcomes"].items():
            lines.append(f"| {outcome.replace('|', '/')} | {count:,} |")
    return "\n".join(lines) + "\n"


TARGETS: dict[str, Callable[[int], Iterator[dict[str, Any]]]] = {
    "model": lambda cases: native("model", cases),
    "structure": lambda cases: native("structure", cases),
    "python": python_structures,
}

if __name__ == "__main__":
    sys.exit(main())
