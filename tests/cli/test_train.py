"""``equibit train`` from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.training.toy import data_file, tree

import equibit.training.run as run_module
from equibit.cli.main import main

CHECKOUT = Path(__file__).resolve().parents[2]


def description(folder: Path, **changes: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree(folder, **changes)))
    return path


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_trains_reports_and_says_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = description(tmp_path)
    assert main(["train", str(path), "optimization.epochs=1"]) == 0
    output = capsys.readouterr().out.replace("\n", "")
    assert "val forces mae meV A" in output
    assert f"equibit evaluate {tmp_path}/run/model.safetensors" in output
    assert (tmp_path / "run" / "model.safetensors").exists()
    # Again, as JSON: the finished run is reported, not repeated.
    assert main(["train", str(path), "optimization.epochs=1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["val_loss"] > 0
    assert figures["model"] == str(tmp_path / "run" / "model.safetensors")


def test_progress_goes_to_the_error_stream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(description(tmp_path)), "--json"]) == 0
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert "training" in captured.err
    assert "2/2" in captured.err


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_dry_run_writes_nothing(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = description(tmp_path)
    before = files_of(tmp_path)
    assert main(["train", str(path), "--dry-run", *flags]) == 0
    assert files_of(tmp_path) == before
    output = capsys.readouterr().out
    if flags:
        outlook = json.loads(output)
        assert (outlook["train"], outlook["validation"], outlook["steps"]) == (40, 5, 16)
        assert outlook["resumes_from"] is None
    else:
        assert "parameters" in output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimization.epoch=3"], "optimization.epoch: no such key; did you mean epochs?"),
        (["optimization.epochs=0"], "optimization.epochs: Input should be greater than"),
        (["network.irreps=8x0e+8x1"], "cannot read '8x1'"),
        (["network.elements=[1]"], "network.elements lacks [8]"),
        (["data.dataset=missing.xyz"], "missing.xyz"),
        (["data.train=1000"], "data.train is 1000"),
        (["nonsense"], "write section.key=value"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_mistakes_are_one_line_and_status_1(
    overrides: list[str],
    message: str,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = description(tmp_path)
    before = files_of(tmp_path)
    assert main(["train", str(path), *overrides, *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert files_of(tmp_path) == before
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [None, b"", b"[1, 2", b"\x80\x04pickle"])
def test_unusable_descriptions_are_named(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.yaml"
    if content is not None:
        path.write_bytes(content)
    assert main(["train", str(path)]) == 1
    assert "odd.yaml" in capsys.readouterr().err


def test_another_configuration_needs_a_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(description(tmp_path))
    assert main(["train", path]) == 0
    assert main(["train", path, "optimization.epochs=3"]) == 1
    assert "--restart" in capsys.readouterr().err
    assert main(["train", path, "optimization.epochs=3", "--restart"]) == 0


def test_ctrl_c_is_status_130_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.training.test_run import stop_after

    path = str(description(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit", stop_after(1, KeyboardInterrupt()))
        assert main(["train", path]) == 130
    error = capsys.readouterr().err
    assert "interrupted: files already written are complete; repeat the command" in error
    assert "Traceback" not in error
    assert main(["train", path, "--dry-run", "--json"]) == 0
    outlook = json.loads(capsys.readouterr().out)
    assert outlook["resumes_from"] == str(tmp_path / "run/checkpoints/last.safetensors")
    assert main(["train", path, "--json"]) == 0


@pytest.mark.slow
def test_a_real_signal_ends_the_process_with_130(tmp_path: Path) -> None:
    data_file(tmp_path)
    path = description(tmp_path, optimization__epochs=100_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "equibit", "train", str(path)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    try:
        for _ in range(400):
            if last.exists() or process.poll() is not None:
                break
            time.sleep(0.25)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert "interrupted" in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.part*"))


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    output = capsys.readouterr().out
    for word in ("--dry-run", "--restart", "--json", "torchrun", "config", "overrides"):
        assert word in output


def test_a_missing_argument_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "'config'" in capsys.readouterr().err
