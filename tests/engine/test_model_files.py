"""The engine's own reader: yesterday's files, and files that nobody should trust."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equibit import engine
from equibit.models import load_potential
from equibit.storage import read_container, versions, write_container
from equibit.structures import FileFormatError, ModelError, Potential, Structure

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")

DATA = Path(__file__).parent / "data"
KNOWN = {
    version: json.loads((DATA / f"ethanol-v{version}.json").read_text()) for version in (1, 2, 3)
}
STRUCTURES = [Structure(KNOWN[1]["numbers"], positions) for positions in KNOWN[1]["positions"]]
RECIPES = ("fp32", "w8a8", "w4a8")


def kept(recipe: str, version: int = 1) -> Path:
    return DATA / f"ethanol-{recipe}-v{version}.safetensors"


@pytest.mark.parametrize(
    ("version", "recipe"),
    [(version, recipe) for version, known in KNOWN.items() for recipe in known["predictions"]],
)
def test_yesterdays_models_predict_what_they_did(version: int, recipe: str) -> None:
    """Written by the version of equibit that introduced the format; predictions are torch's."""
    path = kept(recipe, version)
    potentials: list[Potential] = [engine.load(path, kernels=k) for k in engine.kernel_names()]
    for potential in (*potentials, load_potential(path)):
        predictions = potential.compute(STRUCTURES)
        for got, known in zip(predictions, KNOWN[version]["predictions"][recipe], strict=True):
            forces = np.array(known["forces"])
            scale = np.sqrt(np.mean(forces**2))
            tolerance = 1e-5 if recipe == "fp32" else 2e-2  # a code at a tie
            assert np.sqrt(np.mean((got.forces - forces) ** 2)) < tolerance * scale
            assert abs(got.energy - known["energy"]) < tolerance * scale


@given(data=st.data())
def test_a_file_cut_short_or_changed_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = kept(data.draw(st.sampled_from(RECIPES))).read_bytes()
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:at])
    else:
        byte = whole[at] ^ (1 << data.draw(st.integers(0, 7)))
        path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
    with pytest.raises(FileFormatError, match=r"model\.safetensors"):
        engine.load(path)


def changed_network(**changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda header, tensors: header["network"].update(changes)


def changed_tensor(name: str, change: Callable[[Any], Any]) -> Any:
    def edit(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors[name] = change(tensors[name])

    return edit


def changed_layer(name: str = "update.0.hidden", **changes: Any) -> Any:
    return lambda header, tensors: header["quantization"]["layers"][name].update(changes)


HOSTILE = {
    "no heads": changed_network(heads=0),
    "heads that do not divide": changed_network(heads=3),
    "a billion layers": changed_network(layers=10**9),
    "more layers than there are": changed_network(layers=3),
    "a billion channels": changed_network(irreps="1000000000x0e"),
    "empty irreps": changed_network(irreps=""),
    "odd irreps": changed_network(irreps="16x1o+16x0e"),
    "negative cutoff": changed_network(cutoff=-5.0),
    "no cutoff": lambda header, tensors: header["network"].pop("cutoff"),
    "a text for a number": changed_network(cutoff="wide"),
    "elements in disorder": changed_network(elements=[8, 6, 1]),
    "elements that are none": changed_network(elements=[1, 6, 200]),
    "more elements than scales": changed_network(elements=[1, 6, 7, 8]),
    "many splines": changed_network(splines=10**6),
    "a tensor missing": lambda header, tensors: tensors.pop("head.norm.bias"),
    "a tensor turned": changed_tensor("embedding.weight", lambda x: np.ascontiguousarray(x.T)),
    "a tensor of texts": changed_tensor("embedding.weight", lambda x: x.astype(np.uint16)),
    "a tensor without axes": changed_tensor("basis.projection", lambda x: x.reshape(-1)),
    "too few codes": changed_tensor("update.0.hidden.codes", lambda x: x[:-1]),
    "too few steps": changed_tensor("update.0.hidden.steps", lambda x: x[:-1]),
    "a matrix that is none": changed_layer(shape=[16]),
    "a huge matrix": changed_layer(shape=[2**40, 2**40]),
    "a negative matrix": changed_layer(shape=[-16, -32]),
    "no bits": changed_layer(bits=0),
    "many bits": changed_layer(bits=33),
    "steps beyond all numbers": changed_layer(first_step=10**9),
    "groups of nothing": changed_layer(granularity="group", group_size=0),
    "no recipe": lambda header, tensors: header["quantization"].pop("recipe"),
    "a list for a header": lambda header, tensors: header.update(network=[1, 2]),
}


# Of what version 3 brought.
SHARED = {
    "no room for steps": changed_tensor("update.0.hidden.codes", lambda x: x[:-1]),
    "more than codes and steps": changed_tensor("update.0.hidden.codes", lambda x: np.append(x, x)),
    "nothing in common": lambda header, tensors: header["quantization"].pop("common"),
    "common bits that are none": lambda header, tensors: header["quantization"]["common"].update(
        bits=0
    ),
    "centres of nobody": changed_layer("attention.0.key", centers_of="nobody"),
    "centres in a circle": changed_layer("attention.0.key", centers_of="attention.0.key"),
    "centres of one without": changed_layer("attention.0.key", centers_of="update.0.mix.1"),
    "centres beyond all numbers": changed_layer("update.0.hidden", center=4000),
}


def first_number(bits: int) -> Any:
    """Other bits for the first weight of a layer of bfloat16 numbers."""

    def change(codes: np.ndarray) -> np.ndarray:
        codes[:2] = np.array([bits], "<u2").view(np.uint8)
        return codes

    return changed_tensor("update.0.hidden.codes", change)


def changed_common(**changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda header, tensors: header["quantization"]["common"].update(changes)


BFLOAT16 = {
    "infinite": first_number(0x7F80),
    "no number": first_number(0xFFC1),
    "half a number short": changed_tensor("update.0.hidden.codes", lambda x: x[:-2]),
    "twelve bits": changed_common(bits=12),
    "integers in the place of numbers": changed_common(bits=8),
    "inputs of eight bits": changed_common(input_bits=8),
    "two steps": changed_tensor("update.0.hidden.codes", lambda x: np.append(x, x[-1:])),
}


@pytest.mark.parametrize("what", BFLOAT16)
def test_bfloat16_numbers_that_nobody_should_trust_are_refused(what: str, tmp_path: Path) -> None:
    container = read_container(kept("bf16", 3), kind="model")
    BFLOAT16[what](container.header, container.tensors)
    path = tmp_path / "model.safetensors"
    write_container(path, container.tensors, container.header)
    with pytest.raises(FileFormatError, match=r"model\.safetensors"):
        engine.load(path)
    if what != "inputs of eight bits":  # which torch reads from the recipe
        with pytest.raises(FileFormatError, match=r"codes|cannot hold"):
            load_potential(path)


@pytest.mark.parametrize(
    ("version", "what"), [(1, what) for what in HOSTILE] + [(3, what) for what in SHARED]
)
def test_a_file_whose_checksum_is_right_but_not_its_content_is_refused(
    version: int, what: str, tmp_path: Path
) -> None:
    container = read_container(kept("w4a8", version), kind="model")
    (HOSTILE | SHARED)[what](container.header, container.tensors)
    write_container(tmp_path / "model.safetensors", container.tensors, container.header)
    with pytest.raises(FileFormatError, match=r"model\.safetensors"):
        engine.load(tmp_path / "model.safetensors")


def test_a_newer_or_another_kind_of_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = read_container(kept("fp32"), kind="model")
    path = tmp_path / "model.safetensors"
    write_container(path, container.tensors, container.header | {"kind": "dataset", "version": 1})
    with pytest.raises(FileFormatError, match="holds a dataset, but a model is needed"):
        engine.load(path)
    monkeypatch.setitem(versions.CURRENT_VERSIONS, "model", 9)
    write_container(path, container.tensors, container.header | {"version": 9})
    with pytest.raises(FileFormatError, match=r"version 9.*upgrade equibit"):
        engine.load(path)
    path.write_bytes(b"PK\x03\x04 something else entirely")
    with pytest.raises(FileFormatError, match="not an equibit file"):
        engine.load(path)


def test_a_recipe_it_does_not_run_is_no_damage(tmp_path: Path) -> None:
    container = read_container(kept("w4a8"), kind="model")
    container.header["quantization"]["recipe"]["vectors"]["codec"] = "svq"
    write_container(tmp_path / "model.safetensors", container.tensors, container.header)
    with pytest.raises(ModelError, match="vectors of codec svq"):
        engine.load(tmp_path / "model.safetensors")
