"""Exported files are the model, checked, whatever it was before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.engine.test_model_files import STRUCTURES, kept

from equibit import engine
from equibit.cli.main import main
from equibit.engine.export import export_model
from equibit.storage import WriteError, read_container, write_container
from equibit.storage.versions import CURRENT_VERSIONS
from equibit.structures import FileFormatError, ModelError

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")

VERSION = CURRENT_VERSIONS["model"]


def test_an_exported_model_is_the_same_under_its_new_name(tmp_path: Path) -> None:
    made = export_model(kept("w4a8"), tmp_path / "mine.safetensors", name="mine")
    assert made.runs_in_engine
    assert made.engine in engine.kernel_names()
    assert (made.name, made.recipe, made.version) == ("mine", "w4a8", VERSION)
    assert made.bytes == (tmp_path / "mine.safetensors").stat().st_size
    ours, theirs = engine.load(made.file), engine.load(kept("w4a8"))
    assert ours.name == "mine"
    for one, other in zip(ours.compute(STRUCTURES), theirs.compute(STRUCTURES), strict=True):
        assert (one.forces == other.forces).all()
    again = export_model(kept("w4a8"), tmp_path / "again.safetensors", name="mine")
    assert again.sha256 == made.sha256


def test_run_folders_are_models_too(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(kept("fp32").read_bytes())
    made = export_model(tmp_path, tmp_path / "out.safetensors")
    assert made.name == engine.load(kept("fp32")).name


def test_what_is_no_good_is_not_exported(tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    container = read_container(kept("fp32"), kind="model")
    container.tensors["head.output.weight"][:] = np.inf
    write_container(tmp_path / "infinite.safetensors", container.tensors, container.header)
    with pytest.raises(FileFormatError, match="computes nothing usable"):
        export_model(tmp_path / "infinite.safetensors", target)
    (tmp_path / "cut.safetensors").write_bytes(kept("fp32").read_bytes()[:-1])
    with pytest.raises(FileFormatError, match="truncated"):
        export_model(tmp_path / "cut.safetensors", target)
    with pytest.raises(FileFormatError, match=r"ends in \.safetensors"):
        export_model(kept("fp32"), tmp_path / "out.pt")
    with pytest.raises(FileFormatError, match="the model itself"):
        export_model(tmp_path / "infinite.safetensors", tmp_path / "infinite.safetensors")
    with pytest.raises(ModelError, match="no model"):
        export_model(tmp_path / "none", target)
    with pytest.raises(WriteError):
        export_model(kept("fp32"), tmp_path / "missing" / "out.safetensors")
    assert not target.exists()


def test_what_only_torch_runs_is_said(tmp_path: Path) -> None:
    container = read_container(kept("w4a8"), kind="model")
    container.header["quantization"]["recipe"]["vectors"]["codec"] = "svq"
    write_container(tmp_path / "svq.safetensors", container.tensors, container.header)
    made = export_model(tmp_path / "svq.safetensors", tmp_path / "out.safetensors")
    assert not made.runs_in_engine
    assert "codec svq" in made.engine


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.safetensors"
    assert main(["export", str(kept("w8a8")), "-o", str(target), "--name", "given", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "given"
    assert main(["export", str(kept("w8a8")), "-o", str(target)]) == 0
    assert f"version {VERSION}" in capsys.readouterr().out
