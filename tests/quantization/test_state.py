"""A saved quantised network holds packed codes, nothing twice, and gives identical outputs."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from tests.quantization.test_convert import NETWORKS, calibrated, energies, molecules, transformer

from equibit.networks.base import AtomisticNetwork
from equibit.quantization.convert import freeze_, quantize_
from equibit.quantization.packing import steps_shape, whole_entries
from equibit.quantization.quantizers import DynamicQuantizer
from equibit.quantization.recipes import RECIPES, Recipe, ScalarSpec
from equibit.quantization.state import export_state, import_state
from equibit.structures.errors import FileFormatError, ModelError

CENTERED = RECIPES["w4a8"].model_copy(update={"scalars": ScalarSpec(centered=True)})
CASES: dict[str, Recipe] = {**RECIPES, "w4a8-centered": CENTERED}


@pytest.mark.parametrize(
    ("name", "architecture"),
    [(name, "equivariant_transformer") for name in CASES] + [("w4a8-centered", "so3krates")],
)
def test_a_saved_network_returns_bit_for_bit(name: str, architecture: str) -> None:
    make = NETWORKS[architecture]
    network = calibrated(make(), CASES[name]).eval()
    tensors, manifest = export_state(network)
    manifest = json.loads(json.dumps(manifest))
    with torch.random.fork_rng():
        fresh = make()
        for parameter in fresh.parameters():
            torch.nn.init.normal_(parameter)
    loaded = import_state(fresh, tensors, manifest).eval()
    assert torch.equal(energies(loaded, molecules()), energies(network, molecules()))
    assert loaded.recipe == CASES[name]
    assert loaded.uses_local_frames == network.uses_local_frames


@pytest.mark.parametrize(("name", "ratio"), [("w8a8", 3.9), ("w4a8", 7.5), ("w4a16", 7.5)])
def test_quantised_layers_shrink_as_promised(name: str, ratio: float) -> None:
    tensors, manifest = export_state(quantize_(transformer("64x0e+64x1o"), name))
    layers = {
        layer: entry
        for layer, entry in whole_entries(manifest).items()
        if entry["bits"] == RECIPES[name].weights.bits  # radial filters and heads keep 8
    }
    packed = sum(
        tensors[f"{layer}.{part}"].nbytes
        for layer in layers
        for part in ("codes", "steps")
        if f"{layer}.{part}" in tensors
    )
    full = sum(4 * np.prod(entry["shape"]) for entry in layers.values())
    assert full / packed >= ratio


def test_exports_before_and_after_freezing_are_the_same() -> None:
    network = calibrated(transformer(), RECIPES["w4a8"].model_copy(update={"float_bits": 32}))
    tensors, manifest = export_state(network)
    frozen_tensors, frozen_manifest = export_state(freeze_(copy.deepcopy(network)))
    assert frozen_manifest == manifest
    assert frozen_tensors.keys() == tensors.keys()
    assert all(np.array_equal(frozen_tensors[name], tensors[name]) for name in tensors)


def test_numbers_that_stay_float_take_sixteen_bits_once_frozen() -> None:
    network = freeze_(calibrated(transformer(), "w8a8"))
    tensors, _ = export_state(network)
    assert tensors["embedding.weight"].dtype == np.float16
    assert tensors["attention.0.filter.weight"].dtype == np.float16
    assert tensors["energy_shift"].dtype == np.float64


def test_no_weight_is_stored_twice() -> None:
    tensors, manifest = export_state(calibrated(transformer(), "w4a8"))
    for layer, entry in whole_entries(manifest).items():
        assert f"{layer}.weight" not in tensors
        assert not any(name.startswith(f"{layer}.weight_quantizer") for name in tensors)
        steps = steps_shape(entry["shape"], entry["granularity"], entry["group_size"])
        codes = -(-np.prod(entry["shape"]) * entry["bits"] // 8)
        assert tensors[f"{layer}.codes"].nbytes == codes + np.prod(steps)
        assert f"{layer}.steps" not in tensors


def saved() -> tuple[dict[str, np.ndarray], dict]:
    return export_state(calibrated(transformer(), "w4a8"))


def test_damaged_states_name_the_tensor() -> None:
    tensors, manifest = saved()
    some = next(iter(manifest["layers"]))

    def load(change: dict[str, np.ndarray | None], entry: dict | None = None) -> AtomisticNetwork:
        altered = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        layers = {
            **manifest["layers"],
            **({some: {**manifest["layers"][some], **entry}} if entry else {}),
        }
        return import_state(transformer(), altered, {**manifest, "layers": layers})

    with pytest.raises(FileFormatError, match=f"lacks the tensor {some}.codes"):
        load({f"{some}.codes": None})
    with pytest.raises(FileFormatError, match="has no room for"):
        load({f"{some}.codes": tensors[f"{some}.codes"][:-1]})
    with pytest.raises(FileFormatError, match=r"embedding\.weight"):
        load({"embedding.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(FileFormatError, match="unknown tensors: extra"):
        load({"extra": np.zeros(1)})
    with pytest.raises(FileFormatError, match="shape"):
        load({}, {"shape": [3, 3]})
    with pytest.raises(FileFormatError, match="differ"):
        import_state(transformer(), tensors, {**manifest, "layers": {}})


def test_a_float_network_is_not_exported_as_quantised() -> None:
    with pytest.raises(ModelError, match="not quantised"):
        export_state(transformer())


def test_a_registered_user_quantiser_survives_saving() -> None:
    class Halved(DynamicQuantizer, name="test-halved"):
        def codes(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            codes, step = super().codes(x)
            return torch.round(codes / 2), 2 * step

    try:
        network = calibrated(transformer(), Recipe(scalars=ScalarSpec(scale="test-halved")))
        loaded = import_state(transformer(), *export_state(network))
        assert torch.equal(energies(loaded, molecules()), energies(network, molecules()))
    finally:
        del DynamicQuantizer.registry["test-halved"]
