"""Model files: what is written is read back, and everything else is refused by name."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.networks.test_equivariant_transformer import ELEMENTS, tiny_network

from equibit.evaluation.validation import probe_molecules
from equibit.models import load_potential
from equibit.models.files import load_network, save_model
from equibit.networks.potential import TorchPotential
from equibit.networks.so3krates import So3krates, So3kratesConfig
from equibit.quantization.convert import freeze_, quantize_
from equibit.storage import WriteError
from equibit.storage.container import read_container, write_container
from equibit.structures import FileFormatError

MOLECULES = list(probe_molecules(ELEMENTS).values())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, tiny_network(), name="tiny", training={"seed": 3})
    return path


@pytest.mark.parametrize("architecture", ["equivariant_transformer", "so3krates"])
def test_a_network_survives_its_file(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Any = tiny_network(irreps="8x0e+8x1o+8x2e")
    if architecture == "so3krates":
        settings = {"features": 12, "layers": 1, "heads": 3, "radial_basis": 6}
        network = So3krates(So3kratesConfig(elements=ELEMENTS, cutoff=4.0, **settings))
    save_model(tmp_path / "m.safetensors", network, name="tiny", training={})
    loaded, header = load_network(tmp_path / "m.safetensors")
    assert loaded.config == network.config
    assert not loaded.training
    assert header["units"] == {"length": "angstrom", "energy": "eV"}
    before, after = (TorchPotential(n).compute(MOLECULES) for n in (network, loaded))
    for one, other in zip(before, after, strict=True):
        assert one.energy == other.energy
        np.testing.assert_array_equal(one.forces, other.forces)


def test_the_energy_reference_keeps_float64(tmp_path: Path) -> None:
    network = tiny_network()
    network.set_scale_shift([1.0] * 3, [-13.605693122994, -1029.1, -2041.123456789012])
    save_model(tmp_path / "m.safetensors", network.double(), name="tiny", training={})
    loaded, _ = load_network(tmp_path / "m.safetensors")
    assert loaded.energy_shift.tolist() == [-13.605693122994, -1029.1, -2041.123456789012]
    assert loaded.dtype == torch.float32


def test_float64_arithmetic_on_request(path: Path) -> None:
    single, double = load_potential(path), load_potential(path, dtype="float64")
    assert (single.info.dtype, double.info.dtype) == ("float32", "float64")
    assert single.info.name == "tiny"
    one, other = (p.compute(MOLECULES[:1])[0] for p in (single, double))
    np.testing.assert_allclose(one.forces, other.forces, rtol=1e-3, atol=1e-4)
    assert not np.array_equal(one.forces, other.forces)


def test_the_recipe_is_part_of_the_potential(tmp_path: Path) -> None:
    network = freeze_(quantize_(tiny_network(), "w4a8"))
    save_model(tmp_path / "m.safetensors", network, name="tiny", training={})
    assert load_potential(tmp_path / "m.safetensors").info.recipe == "w4a8"


def test_same_content_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_model(again, tiny_network(), name="tiny", training={"seed": 3})
    assert again.read_bytes() == path.read_bytes()


def altered(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    container = read_container(path, kind="model")
    change(container.header, container.tensors)
    write_container(path, container.tensors, container.header)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, tensors: tensors.pop("head.output.bias"), "missing.*head.output.bias"),
        (lambda header, tensors: tensors.update(x=np.zeros(2)), r"unexpected \['x'\]"),
        (
            lambda header, tensors: tensors.update({"head.output.bias": np.zeros(2)}),
            r"head\.output\.bias has shape \(2,\), expected \(1,\)",
        ),
        (lambda header, tensors: header["network"].update(architecture="nequip"), "nequip"),
        (lambda header, tensors: header["network"].update(irreps="8x0e+8x1e"), "natural parity"),
        (lambda header, tensors: header.pop("network"), "network description is not usable"),
    ],
    ids=["missing", "extra", "shape", "architecture", "irreps", "no description"],
)
def test_inconsistent_files_are_refused_by_name(
    change: Callable[[dict[str, Any], dict[str, Any]], None], message: str, path: Path
) -> None:
    altered(path, change)
    with pytest.raises(FileFormatError, match=message) as caught:
        load_network(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, tensors: header.update(quantization={}), "recipe"),
        (lambda header, tensors: header["quantization"].pop("layers"), "layers"),
        (lambda header, tensors: header["quantization"]["recipe"].update(bits=3), "bits"),
        (
            lambda header, tensors: header["quantization"]["layers"].popitem(),
            "quantised layers of file and network differ",
        ),
        (lambda header, tensors: tensors.pop("attention.0.query.codes"), "lacks the tensor"),
    ],
    ids=["empty", "no layers", "recipe", "layer", "codes"],
)
def test_inconsistent_quantised_files_are_refused_by_name(
    change: Callable[[dict[str, Any], dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, freeze_(quantize_(tiny_network(), "w4a8")), name="tiny", training={})
    altered(path, change)
    with pytest.raises(FileFormatError, match=message) as caught:
        load_network(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: b"", "empty"),
        (lambda data: b"PK\x03\x04" + data, "not an equibit file"),
        (lambda data: data[:-5] + b"\x01" + data[-4:], "checksum"),
    ],
    ids=["truncated", "empty", "foreign", "damaged"],
)
def test_damaged_files_are_refused_by_name(
    damage: Callable[[bytes], bytes], message: str, path: Path
) -> None:
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FileFormatError, match=message) as caught:
        load_network(path)
    assert str(path) in str(caught.value)


def test_a_full_disk_keeps_the_old_model(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="no space left"):
        save_model(path, tiny_network(seed=9), name="new", training={})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
