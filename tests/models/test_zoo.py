"""What is told of the shipped models belongs to the files that are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import equibit.models.shipped as shipped
from equibit.models import resolve_model, shipped_models
from equibit.models.zoo import copy_model, zoo, zoo_entry
from equibit.storage import WriteError
from equibit.storage.checksum import file_sha256
from equibit.structures import FileFormatError, ModelError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of shipped models with one in it, whose files a test may change."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    for suffix in (".safetensors", ".md", ".json"):
        shutil.copy(resolve_model("ethanol-w4a8").with_suffix(suffix), folder)
    monkeypatch.setattr(shipped, "_FOLDER", folder)
    return folder


def test_every_shipped_model_has_data_figures_card_and_licence() -> None:
    entries = zoo()
    assert [entry.name for entry in entries] == shipped_models()
    for entry in entries:
        assert entry.dataset == "rmd17/ethanol"
        assert (entry.split, entry.seed, entry.licence) == (1, 0, "MIT")
        assert entry.sha256 == file_sha256(entry.file)
        assert entry.figures is not None
        assert entry.command is not None
        assert entry.card is not None
        card = Path(entry.card).read_text()
        for key in ("energy_mae_mev", "forces_mae_mev_a"):
            assert f"{entry.figures[key]:.3g}" in card
        assert entry.command in card
    assert {entry.recipe for entry in entries} == {"fp32", "w8a8", "w4a8"}


def test_a_model_without_figures_or_card_is_still_listed(folder: Path) -> None:
    for suffix in (".json", ".md"):
        (folder / f"ethanol-w4a8{suffix}").unlink()
    (entry,) = zoo()
    assert entry.recipe == "w4a8"
    assert entry.figures is entry.card is entry.command is None


def test_figures_of_another_file_are_refused(folder: Path) -> None:
    path = folder / "ethanol-w4a8.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_sha256": "0" * 64}))
    with pytest.raises(FileFormatError, match="about another model file"):
        zoo_entry("ethanol-w4a8")


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_broken_figures_are_named(folder: Path, text: str) -> None:
    path = folder / "ethanol-w4a8.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=r"ethanol-w4a8\.json does not hold the figures"):
        zoo_entry("ethanol-w4a8")


def test_names_that_are_not_shipped(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="did you mean ethanol-w4a8"):
        zoo_entry("ethanol-w4a9")
    with pytest.raises(ModelError, match="is a file of your own"):
        zoo_entry(str(folder / "ethanol-w4a8.safetensors"))


def test_a_copy_is_the_file_with_its_card(tmp_path: Path) -> None:
    model, card = copy_model("ethanol-fp32", tmp_path)
    assert model == tmp_path / "ethanol-fp32.safetensors"
    assert file_sha256(model) == zoo_entry("ethanol-fp32").sha256
    assert card.read_text() == resolve_model("ethanol-fp32").with_suffix(".md").read_text()
    named, _ = copy_model("ethanol-fp32", tmp_path / "mine.safetensors")
    assert named.read_bytes() == model.read_bytes()


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"mine\.pt: name a folder, or a file that ends in"):
        copy_model("ethanol-fp32", tmp_path / "mine.pt")
    with pytest.raises(WriteError, match="there is no folder"):
        copy_model("ethanol-fp32", tmp_path / "no" / "mine.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_model_is_not_copied(folder: Path, tmp_path: Path) -> None:
    path = folder / "ethanol-w4a8.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    target = tmp_path / "copy.safetensors"
    with pytest.raises(FileFormatError, match="damaged"):
        copy_model("ethanol-w4a8", target)
    assert not target.exists()
