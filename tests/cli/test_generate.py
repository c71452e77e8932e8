"""``equibit data generate`` from the outside, worker processes included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from equibit.cli.generate import app
from equibit.structures.errors import DatasetError

TINY = [
    "water",
    "--method=gfn2-xtb",
    "--n-train=2",
    "--n-test=1",
    "--equilibration=2",
    "--spacing=1",
]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_makes_a_set_with_a_worker_process(tmp_path):
    pytest.importorskip("tblite")
    output = tmp_path / "water.npz"
    figures = json.loads(run(*TINY, "-o", str(output), "--json"))
    assert (figures["train frames"], figures["test frames"], figures["left out"]) == (2, 1, 0)
    with np.load(output, allow_pickle=False) as file:
        assert file["R"].shape == (3, 3, 3)
    assert (tmp_path / "water.parts" / "labels.jsonl").exists()
    with pytest.raises(DatasetError, match="exists; choose another name"):
        run(*TINY, "-o", str(output))


def test_a_dry_run_prints_the_cost_and_writes_nothing(tmp_path):
    pytest.importorskip("tblite")
    text = run(*TINY, "-o", str(tmp_path / "water.npz"), "--dry-run")
    assert "seconds per label" in text
    assert "time on free cores" in text
    plan = json.loads(run(*TINY, "-o", str(tmp_path / "water.npz"), "--dry-run", "--json"))
    assert plan["train frames"] == 2
    # Two trajectories: equilibration of 4 steps each, and 2 steps for each of 3 frames.
    assert plan["steps of dynamics"] == 14
    assert plan["seconds per label"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["watre"], "did you mean"),
        (["water", "--method=am1"], "unknown method"),
        (["water", "--sampler=am1"], "unknown sampler"),
        (["water", "--temperature=-3"], "temperature"),
        (["water", "--charge=1"], "9 electrons"),
        (["water", "--n-train=0", "--n-test=0"], "nothing to generate"),
        (["water", "--workers=0"], "workers"),
    ],
)
def test_mistakes_are_named_before_any_work(tmp_path, arguments, message):
    with pytest.raises(DatasetError, match=message):
        run(*arguments, "-o", str(tmp_path / "set.npz"))
    assert list(tmp_path.iterdir()) == []


def test_bad_outputs_are_named(tmp_path):
    with pytest.raises(DatasetError, match="must end in"):
        run("water", "-o", str(tmp_path / "set.h5"))
    with pytest.raises(DatasetError, match="no folder"):
        run("water", "-o", str(tmp_path / "nowhere" / "set.npz"))


def _running(group: int) -> list[str]:
    """Processes of a group that are not zombies."""
    table = subprocess.run(
        ["ps", "-o", "pgid=,stat=", "ax"], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in table.stdout.splitlines()]
    return [stat for pgid, stat in rows if int(pgid) == group and not stat.startswith("Z")]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent_and_the_rest_is_made_later(tmp_path: Path, blow):
    pytest.importorskip("tblite")
    output = tmp_path / "water.npz"
    arguments = [*TINY[:2], "--n-train=300", "--n-test=5", *TINY[4:], "-o", str(output)]
    run_app = "import sys; from equibit.cli.generate import app; app()"
    process = subprocess.Popen(
        [sys.executable, "-c", run_app, *arguments, "--workers=2"],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    labels = tmp_path / "water.parts" / "labels.jsonl"
    try:
        deadline = time.monotonic() + 60
        while not labels.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        # Ctrl-C reaches the whole group, a kill only the parent.
        (os.killpg if blow is signal.SIGINT else os.kill)(process.pid, blow)
        assert process.wait(timeout=20) != 0
        deadline = time.monotonic() + 10
        while _running(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _running(process.pid) == []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    done = labels.read_text().count('"key"')
    assert 0 < done < 305
    assert not output.exists()
    figures = json.loads(run(*arguments, "--json"))
    assert figures["train frames"] + figures["test frames"] == 305
    assert labels.read_text().count('"key"') == 305
