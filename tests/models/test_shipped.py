"""Names of models and paths to them."""

from __future__ import annotations

from pathlib import Path

import pytest

import equibit.models.shipped as shipped
from equibit.models import resolve_model, shipped_models
from equibit.structures import ModelError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of the shipped models, with two in it."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    for name in ("ethanol-w4a8", "ethanol-fp32"):
        (folder / f"{name}.safetensors").write_bytes(b"x")
    (folder / "ethanol-fp32.md").write_text("a card")
    monkeypatch.setattr(shipped, "_FOLDER", folder)
    return folder


def test_names_are_listed_in_order(folder: Path) -> None:
    assert shipped_models() == ["ethanol-fp32", "ethanol-w4a8"]


def test_names_files_and_run_folders_are_found(folder: Path, tmp_path: Path) -> None:
    assert resolve_model("ethanol-fp32") == folder / "ethanol-fp32.safetensors"
    own = tmp_path / "run" / "model.safetensors"
    own.parent.mkdir()
    own.write_bytes(b"y")
    assert resolve_model(own) == resolve_model(str(own)) == own
    assert resolve_model(own.parent) == own


def test_an_own_file_goes_before_a_shipped_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ethanol-fp32").write_bytes(b"mine")
    assert resolve_model("ethanol-fp32").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ethanol-fp23", r"there is no model ethanol-fp23; did you mean ethanol-fp32\?"),
        ("nothing-like-it", "ethanol-fp32, ethanol-w4a8"),
        ("runs/x/model.safetensors", "there is no model runs/x/model.safetensors"),
        ("../shipped/ethanol-fp32", "there is no model"),
        ("", "there is no model"),
    ],
)
def test_what_is_not_there_is_named(folder: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_model(name)


def test_an_installation_without_models_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path / "none")
    assert shipped_models() == []
    with pytest.raises(ModelError, match="none in this installation"):
        resolve_model("ethanol-fp32")


def test_messages_are_sentences(folder: Path) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_model("zzzz")
    assert "zzzz. Give a path" in str(caught.value)
