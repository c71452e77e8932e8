from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.evaluation.test_description import write_model

from equibit import engine
from equibit.cli.main import main

DATA = Path(__file__).parents[1] / "engine" / "data"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "toy.safetensors")


def test_tables(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model)]) == 0
    shown = capsys.readouterr().out
    for text in ("verified", "equivariant_transformer", "Recipe w4a8", "mix.1", "whole file"):
        assert text in shown


@pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")
def test_what_runs_in_integers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "ethanol-w4a8-v1.safetensors"
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "In the engine" in shown
    for name, forward, _ in engine.load(path).arithmetic:
        in_floats = name.startswith("head") or name.endswith("messages")
        assert forward.startswith("float32" if in_floats else "integer: 8") or ".mix." in name
        assert "4-bit weights" in forward or not forward.startswith("integer")
    assert "8-bit inputs" in shown


def test_names_are_whole_and_layers_of_a_kind_share_a_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["inspect", "ethanol-w4a8"]) == 0
    shown = capsys.readouterr().out
    assert "attention.*.query (3×)" in shown
    assert "…" not in shown.replace("…  ", "", 1)  # the digest of the file alone is cut
    assert len(shown.splitlines()) < 200
    (embedding,) = [line for line in shown.splitlines() if line.startswith("│ embedding")]
    assert embedding.split("│")[2].strip() == "16"  # as stored, not as computed


def test_what_the_engine_does_not_run(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model)]) == 0
    assert "Engine does not run it" in capsys.readouterr().out


def test_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [layer["integer"] for layer in result["layers"]] == [False, False, True]
    assert result["size"]["file_bytes"] == model.stat().st_size


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "damaged"),
        (lambda data: b"MODEL" + data, "not an equibit file"),
    ],
)
def test_damaged_files_are_one_clear_error(
    model: Path, capsys: pytest.CaptureFixture[str], damage: object, message: str
) -> None:
    model.write_bytes(damage(model.read_bytes()))  # type: ignore[operator]
    assert main(["inspect", str(model)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert str(model) in error.replace("\n", "")
    assert "Traceback" not in error


def test_an_unknown_name_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "ethanol-w3a3"]) == 1
    assert "no model ethanol-w3a3" in capsys.readouterr().err
