"""``equibit evaluate`` from the command line, with toys in the place of networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.evaluation.toy import MorsePotential, labelled

import equibit.evaluation.files
from equibit.cli.main import main
from equibit.storage import write_container
from equibit.structures.formats.api import write_structures


def _load(name: str, dtype: str | None = None) -> MorsePotential:
    tilt = 1e-3 if "w4a8" in str(name) else 0.0
    return MorsePotential(name=Path(name).stem, dtype=dtype or "float32", tilt=tilt)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two model files and a data file, in the working directory."""
    monkeypatch.setattr(equibit.evaluation.files, "load_potential", _load)
    monkeypatch.chdir(tmp_path)
    for name in ("w4a8", "fp32"):
        weights = {"head.weight": np.zeros((8, 8), np.float32)}
        write_container(tmp_path / f"{name}.safetensors", weights, {"kind": "model"})
    write_structures(tmp_path / "data.xyz", labelled(MorsePotential(depth=1.01), 12))
    return tmp_path


def test_writes_tables_json_and_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jinja2")
    status = main(
        ["evaluate", "w4a8.safetensors", "data.xyz", "--parent", "fp32.safetensors", "--subset",
         "all", "--rotations", "2", "--limit", "6", "--output", "out"]
    )  # fmt: skip
    assert status == 0
    shown = capsys.readouterr().out
    for text in ("Force MAE", "parent", "Local equivariance error", "whole file", "report.html"):
        assert text in shown
    result = json.loads((folder / "out" / "evaluation.json").read_text())
    assert result["data"]["n_structures"] == 6
    assert result["parent"]["info"]["name"] == "fp32"
    assert set(result["floors"]) == {"FP32 parent", "FP64 parent", "FP64 model"}
    assert result["floors"]["FP64 parent"]["forces"]["maximum"] < 1e-9
    assert result["equivariance"]["forces"]["mean"] > 0.1
    assert result["size"]["file_ratio"] == 1.0
    report = (folder / "out" / "report.html").read_text()
    assert "w4a8 on data.xyz" in report


def test_json_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(
        ["evaluate", "fp32.safetensors", "data.xyz", "--subset", "all", "--rotations", "0",
         "--no-latency", "--no-report", "--json"]
    )  # fmt: skip
    assert status == 0
    result = json.loads(capsys.readouterr().out)
    assert result["equivariance"] is None
    assert result["latency"] is None
    written = folder / "evaluation-fp32-data"
    assert sorted(p.name for p in written.iterdir()) == ["evaluation.json"]


def test_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.iterdir())
    assert main(["evaluate", "fp32.safetensors", "data.xyz", "--subset", "all", "--dry-run"]) == 0
    assert "12 structures" in capsys.readouterr().out
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-model", "data.xyz"], "no model no-model"),
        (["fp32.safetensors", "data.xyz", "--parent", "no-model"], "no model no-model"),
        (["fp32.safetensors", "missing.xyz"], "missing.xyz"),
        (["fp32.safetensors", "data.xyz", "--subset", "exam"], "exam"),
        (["fp32.safetensors", "data.xyz", "--units", "parsec"], "parsec"),
        (["fp32.safetensors", "data.xyz", "--dtype", "int3"], "--dtype int3"),
    ],
)
def test_mistakes_are_explained(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = sorted(folder.iterdir())
    assert main(["evaluate", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(folder.iterdir()) == before
