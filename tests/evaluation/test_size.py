"""Size and code use, read from model files written for the purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from equibit.evaluation.size import measure_size, weight_code_use
from equibit.quantization.packing import pack_codes
from equibit.storage import write_container
from equibit.structures import FileFormatError

CODES = np.arange(64 * 32).reshape(64, 32) % 16 - 8


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_container(
        path,
        {
            "embedding.weight": np.zeros((4, 64), np.float32),
            "energy_shift": np.zeros(4),
            "layers.0.query.codes": pack_codes(CODES, 4),
            "layers.0.query.steps": np.zeros((64, 1), np.uint8),
            "layers.0.query.bias": np.zeros(64, np.float32),
            "layers.0.query.input_quantizer.centers": np.zeros((4, 32), np.float16),
        },
        {
            "kind": "model",
            "quantization": {"layers": {"layers.0.query": {"shape": [64, 32], "bits": 4}}},
        },
    )
    return path


def test_everything_of_a_layer_is_counted(model: Path) -> None:
    size = measure_size(model)
    parts = {part.name: part for part in size.parts}
    assert set(parts) == {"embedding", "energy_shift", "layers.0.query"}
    layer = parts["layers.0.query"]
    assert layer.bits == 4
    assert layer.bytes == 64 * 32 // 2 + 64 + 64 * 4 + 4 * 32 * 2
    assert layer.n_weights == 64 * 32 + 64
    assert layer.fp32_bytes == 4 * layer.n_weights
    assert parts["embedding"].bytes == parts["embedding"].fp32_bytes == 4 * 64 * 4
    assert parts["energy_shift"].bytes == 32
    assert size.quantized_ratio == pytest.approx(layer.fp32_bytes / layer.bytes)
    assert size.weight_ratios == {4: pytest.approx(4 * 64 * 32 / (64 * 32 // 2 + 64))}
    assert size.file_bytes == model.stat().st_size
    assert size.file_bytes > sum(part.bytes for part in size.parts)


def test_the_parent_file_is_the_reference(model: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent.safetensors"
    write_container(parent, {"x": np.zeros(5000, np.float32)}, {"kind": "model"})
    size = measure_size(model, parent=parent)
    assert size.file_ratio == parent.stat().st_size / model.stat().st_size
    alone = measure_size(parent)
    assert alone.quantized_ratio is None
    assert alone.file_ratio == 1.0
    assert weight_code_use(parent) == []


def test_codes_are_unpacked(model: Path) -> None:
    (use,) = weight_code_use(model)
    assert use.name == "layers.0.query"
    assert use.bits == 4
    np.testing.assert_array_equal(use.counts, np.full(16, CODES.size // 16))
    assert use.used == 1.0
    assert use.entropy == pytest.approx(4.0)


def test_other_files_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "model.safetensors"
    foreign.write_text("not a model")
    for read in (measure_size, weight_code_use):
        with pytest.raises(FileFormatError, match=r"model\.safetensors"):
            read(foreign)
