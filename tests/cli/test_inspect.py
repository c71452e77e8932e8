from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.evaluation.test_description import write_model

from equibit import engine
from equibit.cli.main import main


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "toy.safetensors")


def test_tables(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model)]) == 0
    shown = capsys.readouterr().out
    for text in ("verified", "equivariant_transformer", "Recipe w4a8", "mix.1", "whole file"):
        assert text in shown


@pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")
@pytest.mark.parametrize("name", ["ethanol-w4a8", "ethanol-fp32"])
def test_what_runs_in_integers(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's own report and nothing else, since processors differ."""
    monkeypatch.setenv("COLUMNS", "200")
    potential = engine.load(name)
    assert main(["inspect", name]) == 0
    before, title, after = capsys.readouterr().out.partition(
        f"In the engine on this processor ({potential.kernels})"
    )
    assert title
    rows = {tuple(cell.strip() for cell in line.split("│")[1:-1]) for line in after.splitlines()}
    for part, forward, reverse in potential.arithmetic:
        kind = re.sub(r"\.\d+\.", ".*.", part)
        assert any(
            row[1:] == (forward, reverse) and row[0].partition(" (")[0] == kind
            for row in rows
            if len(row) == 3
        )
    assert "integer:" not in before
    assert "float32" not in before
    assert main(["inspect", name, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["engine"]
    assert told["kernels"] == potential.kernels
    assert [tuple(row.values()) for row in told["arithmetic"]] == potential.arithmetic


def test_names_are_whole_and_layers_of_a_kind_share_a_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["inspect", "ethanol-w4a8"]) == 0
    shown = capsys.readouterr().out
    assert "attention.*.query (2×)" in shown
    assert "…" not in shown.replace("…  ", "", 1)  # the digest of the file alone is cut
    assert len(shown.splitlines()) < 200
    (embedding,) = [line for line in shown.splitlines() if line.startswith("│ embedding ")]
    assert embedding.split("│")[2].strip() == "16"  # as stored, not as computed


def test_what_the_engine_does_not_run(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model)]) == 0
    assert "Engine does not run it" in capsys.readouterr().out


def test_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [layer["input"][:7] for layer in result["layers"]] == ["float", "ℓ = 1: ", "16 bits"]
    assert result["engine"]["runs"] is False
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
