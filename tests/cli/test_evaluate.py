"""``equibit evaluate`` from the command line, on small networks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.evaluation.toy import MorsePotential, labelled
from tests.networks.test_equivariant_transformer import tiny_network
from tests.quantization.test_contract import quantized

from equibit.cli.main import main
from equibit.models.files import save_model
from equibit.structures.formats.api import write_structures


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network and its low-bit form."""
    folder = tmp_path_factory.mktemp("models")
    network = tiny_network()
    save_model(folder / "fp32.safetensors", network, name="fp32", training={})
    save_model(folder / "w4a8.safetensors", quantized("w4a8", network), name="w4a8", training={})
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two model files and a data file, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for model in models.iterdir():
        shutil.copy(model, tmp_path)
    write_structures(tmp_path / "data.xyz", labelled(MorsePotential(depth=1.01), 12))
    return tmp_path


def test_data_without_forces(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Energies are judged, and what is missing is said, on the terminal and in the report."""
    pytest.importorskip("jinja2")
    bare = [replace(s, forces=None) for s in labelled(MorsePotential(depth=1.01), 6)]
    write_structures(folder / "bare.xyz", bare)
    command = ["evaluate", "w4a8.safetensors", "bare.xyz", "--parent", "fp32.safetensors"]
    options = ["--subset", "all", "--rotations", "1", "--no-latency", "--output", "out"]
    assert main([*command, *options]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "carries no labels of forces" in shown
    assert "Energy MAE" in shown
    assert "Force MAE" not in shown
    assert "Local equivariance error" in shown
    assert "carries no labels of forces" in (folder / "out" / "report.html").read_text()
    result = json.loads((folder / "out" / "evaluation.json").read_text())
    assert result["model"]["errors"]["forces"] is None
    assert result["model"]["errors"]["energy"]["mae"] > 0


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
    plain = {"FP32 parent, not oriented", "model, not oriented"}
    assert set(result["floors"]) == {"FP32 parent", "FP64 parent", "FP64 model", *plain}
    assert result["floors"]["FP64 parent"]["forces"]["maximum"] < 1e-9
    assert result["floors"]["model, not oriented"]["forces"]["mean"] > 1e-4
    parent, model = (folder / f"{name}.safetensors" for name in ("fp32", "w4a8"))
    assert result["size"]["file_ratio"] == parent.stat().st_size / model.stat().st_size
    kinds = {use["kind"] for use in result["codes"]}
    assert kinds == {"weight", "activation", "magnitude", "direction"}
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
