from __future__ import annotations

import json
from pathlib import Path

import pytest

from equibit.cli.main import main
from equibit.models import load_potential, shipped_models


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    shown = capsys.readouterr().out
    assert main(["models", "list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == shipped_models()
    for entry in entries:
        assert f"{entry['name']} " in shown
        assert f"{entry['figures']['forces_mae_mev_a']:.3g}" in shown


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "ethanol-w8a8"]) == 0
    shown = capsys.readouterr().out
    assert "force MAE" in shown
    assert "Licence: MIT" in shown
    assert main(["models", "show", "ethanol-w8a8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == "w8a8"


def test_get(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "get", "ethanol-w4a8", "-o", str(tmp_path), "--json"]) == 0
    model, card = json.loads(capsys.readouterr().out)
    assert load_potential(model).info.recipe == "w4a8"
    assert Path(card).read_text().startswith("# ethanol-w4a8")


def test_a_name_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "ethanol-w4a9"]) == 1
    assert "did you mean ethanol-w4a8?" in capsys.readouterr().err
