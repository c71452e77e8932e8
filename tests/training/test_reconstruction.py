"""Blocks fitted one by one to the float parent."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.experiments.small import NETWORK, small_structures

from equibit.networks.base import AtomisticNetwork
from equibit.networks.equivariant_transformer import EquivariantTransformerConfig
from equibit.networks.registry import build_network
from equibit.quantization.convert import calibrate, quantize_, quantized_layers
from equibit.quantization.published import AdaRoundWeights
from equibit.quantization.quantizers import ScalarQuantizer
from equibit.quantization.recipes import Reconstruction, get_recipe
from equibit.structures import ModelError
from equibit.training.batches import Collator
from equibit.training.reconstruction import _sharpness, difference, mixed, reconstruct

STRUCTURES = small_structures(16)
SETTINGS = Reconstruction(steps=60, batch_size=8, samples=16, learning_rate=0.02)


def pair(recipe: str) -> tuple[AtomisticNetwork, AtomisticNetwork]:
    """A calibrated network and the parent it was made from."""
    torch.manual_seed(0)
    config = EquivariantTransformerConfig.model_validate({**NETWORK, "layers": 2})
    network = build_network(config)
    teacher = copy.deepcopy(network)
    quantize_(network, get_recipe(recipe))
    calibrate(network, [Collator(STRUCTURES, network)(range(16)).inputs])
    return network, teacher


def test_roundings_learn_and_are_decided() -> None:
    network, teacher = pair("qdrop-w4a8")
    before = {
        name: layer.rounded_weight().detach() for name, layer in quantized_layers(network).items()
    }
    weights = {
        name: layer.weight.detach().clone() for name, layer in quantized_layers(network).items()
    }
    gains = reconstruct(network, teacher, STRUCTURES, SETTINGS)
    assert len(gains) == 4
    assert sum(gains) / 4 < 0.9
    changed = 0
    for name, layer in quantized_layers(network).items():
        assert torch.equal(layer.weight, weights[name])
        rounder = layer.weight_quantizer
        assert isinstance(rounder, AdaRoundWeights)
        assert not rounder.soft
        steps = layer.rounded_weight() / rounder.steps
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
        changed += int((layer.rounded_weight() != before[name]).sum())
    assert changed > 0
    assert {m.keep for m in network.modules() if isinstance(m, ScalarQuantizer)} == {0.0}


def test_distillation_moves_weights_towards_the_teacher() -> None:
    network, teacher = pair("zeroquant-w4a8")
    weights = {
        name: layer.weight.detach().clone() for name, layer in quantized_layers(network).items()
    }
    settings = SETTINGS.model_copy(update={"learn": "weights", "keep": 1.0, "learning_rate": 1e-3})
    gains = reconstruct(network, teacher, STRUCTURES, settings)
    assert sum(gains) / len(gains) < 1.0
    assert any(
        not torch.equal(layer.weight, weights[name])
        for name, layer in quantized_layers(network).items()
    )


def test_it_is_the_same_every_time() -> None:
    settings = SETTINGS.model_copy(update={"steps": 3, "keep": 0.0})
    results = []
    original, teacher = pair("qdrop-w4a8")
    for _ in range(2):
        network = copy.deepcopy(original)
        reconstruct(network, teacher, STRUCTURES, settings, seed=3)
        results.append({k: v.clone() for k, v in network.state_dict().items()})
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_inputs_mix_element_by_element() -> None:
    generator = torch.Generator().manual_seed(0)
    one = (torch.ones(1000), {1: torch.ones(10)}, "graph", torch.ones(2, dtype=torch.long))
    other = (torch.zeros(1000), {1: torch.zeros(10)}, "graph", torch.zeros(2, dtype=torch.long))
    x, vectors, graph, index = mixed(one, other, 0.3, generator)
    assert x.mean().item() == pytest.approx(0.3, abs=0.05)
    assert set(x.tolist()) == {0.0, 1.0}
    assert vectors[1].shape == (10,)
    assert graph == "graph"
    assert torch.equal(index, one[3])
    assert torch.equal(mixed(one, other, 1.0, generator)[0], one[0])


def test_differences_sum_over_outputs() -> None:
    one = (torch.tensor([1.0, 3.0]), {1: torch.tensor([2.0])})
    other = (torch.tensor([1.0, 1.0]), {1: torch.tensor([5.0])})
    assert difference(one, other).item() == pytest.approx(2.0 + 9.0)


def test_the_pressure_to_decide_grows() -> None:
    assert _sharpness(0.2) == 20
    assert _sharpness(1.0) == 2


def test_a_network_without_blocks_is_named() -> None:
    network, teacher = pair("qdrop-w4a8")
    network.blocks = list  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="does not name its blocks"):
        reconstruct(network, teacher, STRUCTURES, SETTINGS)
