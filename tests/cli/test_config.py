"""``equibit config`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from equibit.cli.main import main
from equibit.training.config import load_config


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["title"] == "TrainingConfig"
    assert "irreps" in schema["$defs"]["EquivariantTransformerConfig"]["properties"]


def test_examples_are_listed_printed_and_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "example"]) == 0
    names = capsys.readouterr().out.split()
    assert "ethanol-pbe" in names
    for name in names:
        assert main(["config", "example", name]) == 0
        path = tmp_path / f"{name}.yaml"
        path.write_text(capsys.readouterr().out)
        assert load_config(path).data.dataset


def test_an_example_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    assert main(["config", "example", "ethanol-pbe", "-o", str(path)]) == 0
    assert f"equibit train {path}" in capsys.readouterr().out
    assert yaml.safe_load(path.read_text())["data"]["dataset"] == "ethanol-pbe"
    path.write_text("precious")
    assert main(["config", "example", "ethanol-pbe", "-o", str(path)]) == 1
    assert "exists" in capsys.readouterr().err
    assert path.read_text() == "precious"


def test_unknown_examples_name_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "example", "benzene"]) == 1
    error = capsys.readouterr().err
    assert "no example benzene" in error
    assert "ethanol-pbe" in error


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "example", "ethanol-pbe", "-o", str(tmp_path / "no" / "x.yaml")]) == 1
    assert "there is no folder" in capsys.readouterr().err
