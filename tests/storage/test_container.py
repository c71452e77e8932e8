from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from equibit.storage import read_container, versions, write_container
from equibit.storage.atomic import WriteError
from equibit.structures import FileFormatError

DTYPES = ["bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64"]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda name: hnp.arrays(name, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
NAMES = st.text("abcXYZ019_.:/-", min_size=1, max_size=12)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("container") / "model.safetensors"
    tensors = {
        "layers.0.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "codes": np.arange(7, dtype=np.uint8),
        "scale": np.array(0.5),
        "none": np.zeros((0, 3), dtype=np.int64),
    }
    write_container(path, tensors, {"kind": "model", "name": "Å", "cutoff": 1e-5})
    return path.read_bytes()


@given(tensors=st.dictionaries(NAMES, ARRAYS, max_size=4), extra=JSON_VALUES)
def test_what_is_written_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any], extra: Any
) -> None:
    path = tmp_path_factory.mktemp("roundtrip") / "file"
    write_container(path, tensors, {"kind": "dataset", "extra": extra})
    container = read_container(path, kind="dataset")
    assert container.header == {"kind": "dataset", "version": 1, "extra": extra}
    assert container.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        back = container.tensors[name]
        assert back.dtype == tensor.dtype
        assert back.shape == tensor.shape
        assert back.tobytes() == tensor.tobytes()
        assert back.flags.writeable


def test_strides_and_byte_order_do_not_matter(tmp_path: Path) -> None:
    plain = np.arange(6, dtype=np.float64).reshape(2, 3)
    header = {"kind": "model"}
    write_container(tmp_path / "a", {"x": plain}, header)
    write_container(tmp_path / "b", {"x": np.asfortranarray(plain.astype(">f8"))}, header)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    np.testing.assert_array_equal(read_container(tmp_path / "b", kind="model").tensors["x"], plain)


def test_the_order_of_keys_does_not_matter(tmp_path: Path) -> None:
    x, y = np.zeros(2), np.ones(3, dtype=np.int8)
    write_container(tmp_path / "a", {"x": x, "y": y}, {"kind": "model", "b": 1, "a": 2})
    write_container(tmp_path / "b", {"y": y, "x": x}, {"a": 2, "b": 1, "kind": "model"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@given(data=st.data())
def test_every_truncation_is_refused(
    tmp_path_factory: pytest.TempPathFactory, written: bytes, data: st.DataObject
) -> None:
    length = data.draw(st.integers(0, len(written) - 1))
    path = tmp_path_factory.mktemp("cut") / "file"
    path.write_bytes(written[:length])
    with pytest.raises(FileFormatError, match=str(path)):
        read_container(path, kind="model")


def test_every_flipped_bit_is_refused(tmp_path: Path, written: bytes) -> None:
    path = tmp_path / "file"
    for position in range(len(written)):
        damaged = bytearray(written)
        damaged[position] ^= 1 << (position * 5 % 8)
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=str(path)):
            read_container(path, kind="model")


@given(noise=st.binary(max_size=200))
def test_noise_is_refused(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "file"
    path.write_bytes(noise)
    with pytest.raises(FileFormatError, match=str(path)):
        read_container(path, kind="model")


def test_each_reason_is_named(tmp_path: Path, written: bytes) -> None:
    path = tmp_path / "file"

    def reason(content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(FileFormatError) as caught:
            read_container(path, kind="checkpoint")
        return str(caught.value)

    with pytest.raises(FileFormatError, match="there is no file"):
        read_container(path, kind="model")
    with pytest.raises(FileFormatError, match="is a folder"):
        read_container(tmp_path, kind="model")
    assert "is empty" in reason(b"")
    assert "not an equibit file" in reason(b"PK\x03\x04 a zip archive, for example a pickle")
    assert "only 5 bytes" in reason(b"hello")
    assert "truncated: it ends within its header" in reason(written[:100])
    assert "truncated or damaged" in reason(written[:-1])
    assert "checksum" in reason(written[:-1] + b"\xff")
    assert "not one that equibit wrote" in reason(save({"x": np.zeros(3)}))
    assert "header is not readable" in reason(save({"x": np.zeros(3)}, {"equibit": "{}"}))
    assert "holds a model, but a checkpoint is needed" in reason(written)


def test_a_newer_version_asks_for_an_upgrade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = versions.CURRENT_VERSIONS["model"]
    with monkeypatch.context() as future:
        future.setitem(versions.CURRENT_VERSIONS, "model", 7)
        write_container(tmp_path / "file", {}, {"kind": "model"})
    with pytest.raises(
        FileFormatError, match=rf"version 7.*up to version {current}; upgrade equibit"
    ):
        read_container(tmp_path / "file", kind="model")


def test_an_old_version_is_upgraded_step_by_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(versions.CURRENT_VERSIONS, "model", 1)
    write_container(tmp_path / "file", {"x": np.ones(2)}, {"kind": "model", "cutof": 5.0})

    def rename_key(header: versions.Header, tensors: versions.Tensors) -> Any:
        return {"kind": header["kind"], "cutoff": header["cutof"]}, tensors

    def rename_tensor(header: versions.Header, tensors: versions.Tensors) -> Any:
        return header, {"y": tensors["x"]}

    monkeypatch.setitem(versions.CURRENT_VERSIONS, "model", 3)
    monkeypatch.setitem(versions.UPGRADES, "model", {1: rename_key, 2: rename_tensor})
    container = read_container(tmp_path / "file", kind="model")
    assert container.header == {"kind": "model", "version": 3, "cutoff": 5.0}
    assert list(container.tensors) == ["y"]
    monkeypatch.setitem(versions.UPGRADES, "model", {2: rename_tensor})
    with pytest.raises(FileFormatError, match="version 1, which equibit no longer reads"):
        read_container(tmp_path / "file", kind="model")


def test_yesterdays_files_still_load() -> None:
    folder = Path(__file__).parent / "data"
    files = sorted(folder.glob("*_v*.safetensors"))
    assert files
    for file in files:
        container = read_container(file, kind=file.name.split("_")[0])
        np.testing.assert_array_equal(container.tensors["x"], np.arange(6.0).reshape(2, 3))
        assert container.header["name"] == "kept"


def test_the_checksum_follows_the_written_definition(written: bytes) -> None:
    """Another program must be able to check a file from the module's description alone."""
    import hashlib

    (length,) = struct.unpack("<Q", written[:8])
    layout = json.loads(written[8 : 8 + length])
    envelope = layout.pop("__metadata__")["equibit"]
    body = envelope[len('{"sha256":"","header":') + 64 : -1]
    numpy_names = {"F32": "float32", "F64": "float64", "U8": "uint8", "I64": "int64"}
    content = body.encode()
    for name in sorted(layout):
        shape = ",".join(map(str, layout[name]["shape"]))
        content += f"\n{name} {numpy_names[layout[name]['dtype']]} {shape}\n".encode()
        start, end = layout[name]["data_offsets"]
        content += written[8 + length + start : 8 + length + end]
    assert json.loads(envelope)["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({}, {}, "kind is None"),
        ({}, {"kind": "pickle"}, "kind is 'pickle'"),
        ({}, {"kind": "model", "version": 9}, "version is 9"),
        ({}, {"kind": "model", "x": float("nan")}, "not strict JSON"),
        ({}, {"kind": "model", "x": np.float32(1)}, "not strict JSON"),
        ({"a b": np.zeros(1)}, {"kind": "model"}, "tensor name 'a b'"),
        ({"x": np.array([None])}, {"kind": "model"}, "tensor x is object"),
        ({"x": np.array(["a"])}, {"kind": "model"}, "tensor x is <U1"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_writing(
    tmp_path: Path, tensors: dict[str, Any], header: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_container(tmp_path / "file", tensors, header)
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="there is no folder"):
        write_container(tmp_path / "no" / "file", {}, {"kind": "model"})
