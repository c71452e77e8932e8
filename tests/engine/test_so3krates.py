"""So3krates in the engine answers as the torch network does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.potential_contract import PotentialContract
from tests.quantization.test_contract import quantized

from equibit import engine
from equibit.engine.potential import kernel_names
from equibit.evaluation.validation import probe_crystals, probe_molecules
from equibit.models.files import load_potential, save_model
from equibit.networks.so3krates import So3krates, So3kratesConfig
from equibit.structures import ModelError, Potential

pytestmark = pytest.mark.skipif(not engine.is_built(), reason="the compiled engine is not built")

ELEMENTS = (1, 6, 8)


def network(**changes: Any) -> So3krates:
    """Random weights, biases included, small enough that no layer runs away."""
    torch.manual_seed(0)
    config = So3kratesConfig(elements=ELEMENTS, cutoff=5.0, **changes)
    result = So3krates(config)
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
    return result


def model_file(folder: Path, **changes: Any) -> Path:
    path = folder / "model.safetensors"
    save_model(path, network(**changes), name="so3krates", training={})
    return path


SHAPES: dict[str, dict[str, Any]] = {
    "published": {},
    "wide blocks": {"features": 96, "layers": 2},
    "one degree": {"features": 16, "heads": 2, "degrees": (2,), "layers": 1},
    "degrees one and three": {"features": 24, "heads": 3, "degrees": (1, 3)},
    "robust attention": {"features": 48, "layers": 2, "robust_attention": True},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_network_in_float64(shape: str, tmp_path: Path) -> None:
    path = model_file(tmp_path, **SHAPES[shape])
    reference = load_potential(path, dtype="float64")
    groups = [
        (list(probe_molecules(ELEMENTS).values()), False),
        (list(probe_crystals(ELEMENTS).values()), True),
    ]
    for kernels in kernel_names():
        native = engine.load(path, kernels=kernels)
        for structures, stress in groups:
            got = native.compute(structures, stress=stress)
            expected = reference.compute(structures, stress=stress)
            typical = np.median([np.abs(e.forces).max() for e in expected])
            for g, e in zip(got, expected, strict=True):
                scale = max(np.abs(e.forces).max(), typical)
                assert np.abs(g.atomic_energies - e.atomic_energies).max() < 3e-6 * max(scale, 1)
                assert np.abs(g.forces - e.forces).max() < 3e-5 * scale
                if e.stress is not None:
                    assert np.abs(g.stress - e.stress).max() < 3e-5 * np.abs(e.stress).max()


class TestContract(PotentialContract):
    dtypes = ("float32",)

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls, dtype: str, tmp_path_factory: pytest.TempPathFactory) -> Potential:
        return engine.load(model_file(tmp_path_factory.mktemp("model"), features=48, layers=2))


def test_its_recipes_are_left_to_torch(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, quantized("w8a8", network(features=48)), name="so3krates", training={})
    assert not engine.supports(path)
    with pytest.raises(ModelError, match="float32 only"):
        engine.load(path)
