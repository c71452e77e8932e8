"""So3krates in the engine answers as the torch network does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine.test_quantized import assert_equals_the_fake_quantised
from tests.potential_contract import PotentialContract
from tests.quantization.test_contract import quantized

from equibit import engine
from equibit.engine.potential import kernel_names
from equibit.evaluation.validation import STAIRCASE, probe_crystals, probe_molecules
from equibit.models.files import load_potential, save_model
from equibit.networks.so3krates import So3krates, So3kratesConfig
from equibit.quantization.recipes import Recipe, VectorSpec, WeightSpec
from equibit.structures import Potential

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
                most = max(np.abs(e.atomic_energies).max(), scale, 1)
                assert np.abs(g.atomic_energies - e.atomic_energies).max() < 1e-6 * most
                assert np.abs(g.forces - e.forces).max() < 1e-5 * scale
                if e.stress is not None:
                    assert np.abs(g.stress - e.stress).max() < 1e-5 * np.abs(e.stress).max()


class TestContract(PotentialContract):
    dtypes = ("float32",)

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls, dtype: str, tmp_path_factory: pytest.TempPathFactory) -> Potential:
        return engine.load(model_file(tmp_path_factory.mktemp("model"), features=48, layers=2))


FORMS: dict[str, tuple[Recipe | str, dict[str, Any]]] = {
    "w8a8": ("w8a8", {"features": 48, "layers": 2}),
    "published, w4a8": ("w4a8", {}),
    "w4a8 of even blocks": ("w4a8", {"features": 96, "heads": 3, "robust_attention": True}),
    "w8a16": ("w8a16", {"features": 24, "heads": 2, "degrees": (1, 3)}),
    "bf16": ("bf16", {"features": 48, "layers": 2}),
    "bf16, odd sizes": ("bf16", {"features": 24, "heads": 2, "degrees": (1, 3)}),
    "naive-w8a8": ("naive-w8a8", {"features": 48, "layers": 2}),
    "weights alone": (
        Recipe(scalars=None, vectors=VectorSpec(codec="identity"), weight_only=WeightSpec()),
        {"features": 48, "layers": 2},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_fake_quantised_network(form: str, tmp_path: Path) -> None:
    recipe, changes = FORMS[form]
    path = tmp_path / "model.safetensors"
    save_model(path, quantized(recipe, network(**changes)), name="so3krates", training={})
    assert_equals_the_fake_quantised(path, least_scale=1.0)


class QuantizedContract(PotentialContract):
    dtypes = ("float32",)
    skips = STAIRCASE
    # A code at a tie flips with the last bit of float32 under permutations and rotations.
    tolerance = 3e-2
    recipe = "w8a8"

    @pytest.fixture(scope="class")
    @classmethod
    def potential(cls, dtype: str, tmp_path_factory: pytest.TempPathFactory) -> Potential:
        path = tmp_path_factory.mktemp("model") / "model.safetensors"
        made = quantized(cls.recipe, network(features=48, layers=2))
        save_model(path, made, name="so3krates", training={})
        return engine.load(path)


class TestW8A8(QuantizedContract):
    pass


class TestBF16(QuantizedContract):
    recipe = "bf16"


class TestNaiveW8A8(QuantizedContract):
    """Its products act on invariants only, so the laboratory frame breaks nothing."""

    recipe = "naive-w8a8"
